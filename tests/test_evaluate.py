"""`evaluate` of an autoregressive run, and of any text under any checkpoint, as a user runs it."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_runs import TINY, write_text
from command_runs import run as run_command

from mdlm_jax import data

pytestmark = pytest.mark.slow

LENGTH = 16
GOLDEN = Path(__file__).parent / "interop" / "golden" / "bert"
CAUSAL = (
    "--config.objective.name=autoregressive",
    "--config.model.attention=causal",
    "--config.model.window=0",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    write_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    env = {"MDLM_JAX_CACHE": str(folder / "cache")}

    def run(name, *arguments, code=0):
        places = {"text": folder / "text.txt", "folder": folder}
        return run_command(name, *arguments, code=code, env=env, **places)

    return run


@pytest.fixture(scope="module")
def causal(run, folder):
    done = run("train", *TINY, *CAUSAL, "--workdir={folder}/causal")
    assert "validation cross-entropy" in done.stdout and "(exact)" in done.stdout
    assert "NELBO" not in done.stdout
    return folder / "causal"


def test_training_tells_the_exact_likelihood_and_shows_a_sample(causal):
    lines = [json.loads(line) for line in (causal / "metrics.jsonl").read_text().splitlines()]
    (evaluated,) = [each for each in lines if each["kind"] == "eval"]
    assert evaluated["likelihood"] == "exact" and evaluated["mc_error"] == 0
    assert {each["kind"] for each in lines} == {"train", "eval", "sample"}


def test_its_likelihood_is_exact_and_nowhere_called_a_bound(run, causal):
    done = run("evaluate", f"--workdir={causal}", "--mesh=data=1")
    told = json.loads((causal / "evaluation_test.json").read_text())
    card = json.loads((causal / "data.json").read_text())["splits"]["test"]
    assert told["likelihood"] == "exact" and told["tokens"] == card["rows"] * LENGTH
    assert not {"rate_curve", "draws"} & told.keys() and told["bigram"] < told["unigram"]
    assert f"exact    {told['nats_per_token']:.3f} nats/token" in done.stdout
    page = (causal / "report.html").read_text()
    assert "NELBO" not in done.stdout + page and "exact: nothing was drawn" in page


def test_a_causal_run_goes_on_from_a_prompt(run, causal):
    """Greedily, it writes the same whatever the seed; a whole row has a step for each token."""
    prompt = ["--prompt=the river [MASK] [MASK]", "--temperature=0", "--json"]
    one, other = (
        json.loads(run("generate", f"--workdir={causal}", *prompt, f"--seed={seed}").stdout)
        for seed in (0, 1)
    )
    assert one["text"] == other["text"] != one["prompt"] and one["text"].startswith("the river")
    assert (one["strategy"], one["evaluations"]) == ("left_to_right", 2)
    # Whatever else is asked for, a prompt's text is the same.
    many = run("generate", f"--workdir={causal}", *prompt[1:], prompt[0], "--seed=0",
               "--prompt=the {{mask:9}}")  # fmt: skip
    assert json.loads(many.stdout.splitlines()[0]) == one
    whole = json.loads(run("generate", f"--workdir={causal}", "--json").stdout)
    assert whole["evaluations"] == LENGTH and whole["text"]


def test_the_frontier_of_a_causal_run_has_one_way_of_writing(run, causal):
    run("evaluate", f"--workdir={causal}", "--frontier", "--samples=4", "--split=validation")
    (point,) = json.loads((causal / "frontier.json").read_text())["points"]
    assert (point["strategy"], point["steps"]) == ("left_to_right", LENGTH)
    assert point["evaluations"] == LENGTH and point["rows"] == 4


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("evaluate", ["--draws=2"], "--draws does nothing for a model that is measured exactly"),
        ("evaluate", ["--frontier", "--steps=4"], "--steps is for models that fill masks"),
        ("evaluate", ["--answers"], "was trained autoregressively: it fills no masks"),
        ("generate", ["--steps=4"], "--steps is for models that fill masks"),
        ("generate", ["--prompt=a [MASK] river"], "'a [MASK] river' has text behind a gap"),
    ],
)
def test_what_is_of_masks_is_refused(run, causal, name, flags, message):
    done = run(name, f"--workdir={causal}", *flags, code=2)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_words_of_any_text_are_counted_as_of_a_split(run, causal, folder):
    """The text that the run was trained on, by another way: every token once, n-grams beside."""
    flags = ("--text={text}", "--documents=paragraph", "--name=whole")
    done = run("evaluate", f"--workdir={causal}", *flags)
    told = json.loads((causal / "evaluation_whole.json").read_text())
    splits = json.loads((causal / "data.json").read_text())["splits"].values()
    assert told["tokens"] == sum(split["tokens"] for split in splits)
    assert told["words"] == len((folder / "text.txt").read_text().split())
    assert told["unknown_tokens"] == 0 and told["trigram"] < told["unigram"]
    assert f"text of {folder / 'text.txt'}" in done.stdout


def test_text_under_a_checkpoint_of_hugging_face(run, folder):
    (folder / "cats.txt").write_text("the cat sat on mat.\nthe dog ran, a cat ran.\na bird sat.")
    flags = ("--text={folder}/cats.txt", "--documents=line", "--output={folder}/bert", "--draws=2")
    done = run("evaluate", f"--checkpoint={GOLDEN}", *flags, "--batch_size=4")
    told = json.loads((folder / "bert" / "evaluation_text.json").read_text())
    tokenizer = data.load_tokenizer(GOLDEN)
    lines = (folder / "cats.txt").read_text().splitlines()
    tokens = np.concatenate(list(data.encode_documents(tokenizer, lines)))
    assert told["tokens"] == len(tokens) and told["length"] == 12
    assert told["unknown_tokens"] == 1  # the bird
    assert "1 tokens are unknown" in done.stdout and "no n-grams" in done.stdout
    assert "unigram" not in told and told["weights"] is told["step"] is None
    assert {path.name for path in (folder / "bert").iterdir()} == {"evaluation_text.json"}


def test_files_of_several_become_one_picture(run, causal, folder):
    files = (f"{causal}/evaluation_test.json", "{folder}/bert/evaluation_text.json")
    run("report", *files, "--output={folder}/curves.png")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
