"""The command, on a tiny model of random weights."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import exported
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import command, run

from mdlm_jax import data, interop
from mdlm_jax.networks import bert

GUIDE = Path(__file__).parents[1] / "docs" / "generation.md"
PAIRS = GUIDE.with_name("pairs.md")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "runs"
    folder.mkdir()
    return exported.write(folder / "quickstart", classes=2)


def generate(workdir, *flags, code=0):
    return run("generate", f"--workdir={workdir}", *flags, code=code)


def records(text):
    return [json.loads(line) for line in text.splitlines()]


EVERYTHING = (
    "--strategy= threshold(0.1) ", "--steps=12", "--blocks=3", "--temperature=0.5", "--top_k=9",
    "--top_p=0.9", "--min_p=0.01", "--repetition_penalty=1.5", "--forbid=[UNK]", "--forbid=e",
    "--guidance=2", "--end_of_text", "--length=12", "--seed=4", "--samples=2",
)  # fmt: skip


def test_a_line_tells_how_it_was_made(workdir):
    done = generate(workdir, *EVERYTHING, "--label=wool", "--prompt=old {{mask:6}}", "--json")
    assert not done.stderr
    made = records(done.stdout)
    assert [record.pop("sample") for record in made] == [0, 1]
    for record in made:
        text = record.pop("text")
        assert text.startswith("old") and not re.search(r"\be|\[UNK\]", text[3:])
        assert 1 <= record.pop("evaluations") <= 6
        assert record == {
            "prompt": "old {mask:6}", "label": "wool", "strategy": "threshold(0.1)", "steps": 12,
            "seed": 4, "temperature": 0.5, "checkpoint": exported.STEP, "forbid": ["[UNK]", "e"],
            "repetition_penalty": 1.5, "min_p": 0.01, "top_k": 9, "top_p": 0.9, "blocks": 3,
            "guidance": 2.0, "end_of_text": True, "length": 12,
        }  # fmt: skip


@pytest.mark.slow
def test_a_line_tells_of_the_cache(workdir):
    flags = ("--blocks=4", "--steps=8", "--json")
    (plain,) = records(generate(workdir, *flags).stdout)
    (made,) = records(
        generate(workdir, *flags, "--cache=vicinity", "--around=2", "--refresh=1").stdout
    )
    assert made == plain | {"cache": "vicinity", "refresh": 1, "around": 2}
    assert made["text"]


@pytest.mark.slow
def test_a_job_goes_on_where_it_was_stopped_and_with_other_flags_is_refused(workdir, tmp_path):
    lines = [
        {"prompt": "the [MASK]", "label": "salt"}, {"prompt": ""}, {"prompt": "{mask:3} mill"},
    ]  # fmt: skip
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = (f"--prompts={prompts}", f"--output={output}", "--samples=2", "--steps=3")
    done = generate(workdir, *flags, "--batch_size=4", "--label=wool")
    assert done.stdout == f"{output}: 6 samples, 6 of them new\n"
    whole = output.read_bytes()
    made = records(whole.decode())
    assert [(each["prompt"], each["sample"]) for each in made] == [
        (line["prompt"], sample) for line in lines for sample in (0, 1)
    ]
    assert [each["label"] for each in made] == ["salt"] * 2 + ["wool"] * 4  # --label is the default
    assert [each["evaluations"] for each in made] == [1, 1, 3, 3, 3, 3]

    output.write_bytes(whole[: whole.index(b"\n") + 20])  # killed within the second line
    done = generate(workdir, *flags, "--batch_size=3", "--label=wool")
    assert output.read_bytes() == whole and "5 of them new" in done.stdout
    done = generate(workdir, *flags, "--label=wool", "--top_k=3", code=2)
    assert "line 1 is a sample of another job: top_k is not set there, 3 here" in done.stderr
    assert output.read_bytes() == whole


def test_samples_go_into_what_is_printed_and_nobody_has_to_read_them_all(workdir, tmp_path):
    link = tmp_path / "stdout"
    link.symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    keeps = {
        "JAX_COMPILATION_CACHE_DIR": "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MDLM_JAX_COMPILED": str(tmp_path / "compiled"),
    }
    flags = (f"--workdir={workdir}", "--samples=2", "--steps=1", f"--output={link}")
    done = run("generate", *flags, env=keeps)
    assert [*(tmp_path / "compiled").glob("*/jit_write-*-cache")]
    assert [made["sample"] for made in records(done.stdout)] == [0, 1] and link.is_symlink()
    assert done.stderr == f"{link}: 2 samples, 2 of them new\n"

    flags = (f"--workdir={workdir}", "--samples=100000", "--batch_size=1", "--steps=1")
    with subprocess.Popen(
        command("generate", flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)


TALK = [{"role": "user", "content": "salt?"}, {"role": "user", "content": "wool?"}]


def test_a_run_of_conversations_answers_what_has_no_gap(tmp_path):
    """A tokenizer that trained no model: what is asked, what is shown, and what the lines tell."""
    template = "{% for m in messages %}the {{ m.content }} {% endfor %}"
    card = {"config": {"messages_field": "talk"}, "chat_template": template}
    workdir = exported.write(tmp_path / "run", card=card)
    lines = [
        {"prompt": "old mill?"}, {"talk": TALK, "label": None}, {"prompt": "the [MASK] mill"},
    ]  # fmt: skip
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    generate(workdir, f"--prompts={prompts}", f"--output={output}", "--steps=32", "--blocks=4")
    answer, talk, gap = records(output.read_text())
    assert all(each["end_of_text"] is True for each in (answer, talk, gap))
    assert answer["prompt"] == "old mill?" and "messages" not in answer
    assert (talk["prompt"], talk["messages"]) == ("wool?", TALK)
    assert not answer["text"].startswith("the old") and gap["text"].startswith("the")
    tokens = exported.LENGTH - len(
        next(data.encode_documents(data.load_tokenizer(workdir), ["the old mill? "]))
    )
    assert 1 <= answer["evaluations"] <= tokens and gap["evaluations"] == 1
    done = generate(workdir, "--prompt=old mill?", "--noend_of_text", "--json")
    (free,) = records(done.stdout)
    assert "end_of_text" not in free and free["evaluations"] == tokens


@pytest.mark.slow
def test_the_guide_of_pairs_teaches_a_model_to_answer_and_when_to_stop(tmp_path):
    """Words that it never saw, backwards; by chance one in a thousand of five letters is right."""
    script = re.findall(r"^```bash\n(.*?)^```", PAIRS.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "configs").symlink_to(PAIRS.parents[1] / "configs")
    done = subprocess.run(
        ["bash", "-ec", "".join(script)],
        cwd=tmp_path,
        env={
            **os.environ,
            "MDLM_JAX_CACHE": str(tmp_path / "cache"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "runs/answers/evaluation_test.json").read_text())
    assert told["nats_per_token"] < 0.3 < 1 < told["trigram"] < told["unigram"]
    measured = json.loads((tmp_path / "runs/answers/answers.json").read_text())
    assert measured["another"]["exact_match"] < 0.1 and measured["another"]["bertscore_f1"] < 0.99
    for point in measured["points"]:
        assert point["exact_match"] > 0.9 and point["length_right"] > 0.9
        assert point["bertscore_f1"] > measured["another"]["bertscore_f1"]
    text = (tmp_path / "answered.jsonl").read_text()
    answers = [(each["prompt"][::-1].upper(), each["text"]) for each in records(text)]
    assert len(answers) == 50
    assert sum(expected == text for expected, text in answers) >= 48
    assert sum(len(expected) == len(text) for expected, text in answers) >= 48


def test_the_help_lists_every_strategy(workdir):
    told = generate(workdir, "--help").stdout
    for strategy in ("exact_count", "threshold", "remask", "path_planning", "entropy_bounded"):
        assert re.search(rf"^    - {strategy}\b.*:", told, flags=re.MULTILINE), strategy


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def together(workdir, *flags, processes=2, devices=2):
    """The same command in several processes of one job: return codes and what each printed."""
    told = {
        "COORDINATOR_ADDRESS": f"localhost:{free_port()}",
        "NUM_PROCESSES": str(processes),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    job = [
        subprocess.Popen(
            command("generate", (f"--workdir={workdir}", *flags[index])),
            env={**os.environ, **told, "PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    ended = [process.communicate(timeout=300) for process in job]
    return [process.returncode for process in job], ended


@pytest.mark.slow
def test_two_processes_write_what_one_does(workdir, tmp_path):
    flags = ("--prompt=the {{mask:5}}", "--prompt=", "--samples=3", "--batch_size=4", "--steps=6")
    generate(workdir, *flags, f"--output={tmp_path}/one.jsonl")
    shared = (*flags, f"--output={tmp_path}/two.jsonl", "--mesh=data=2,tensor=2")
    codes, ended = together(workdir, shared, shared)
    assert codes == [0, 0], ended
    assert "6 samples, 6 of them new" in ended[0][0] and "samples" not in ended[1][0]
    one, two = (tmp_path / name for name in ("one.jsonl", "two.jsonl"))
    assert two.read_bytes() == one.read_bytes()

    two.write_bytes(one.read_bytes()[:-7])  # the last line torn: both must begin with it
    codes, ended = together(workdir, shared, shared)
    assert codes == [0, 0] and "1 of them new" in ended[0][0], ended
    assert two.read_bytes() == one.read_bytes()


@pytest.mark.slow
def test_processes_that_are_asked_for_different_things_all_refuse(workdir):
    codes, ended = together(workdir, ("--steps=2",), ("--steps=3",))
    assert codes == [2, 2]
    assert all("what is asked for differs between the processes" in told for _, told in ended)
    codes, ended = together(workdir, ("--steps=2",), ("--steps=2", "--prompts=gone.txt"))
    assert codes == [2, 2]
    assert "gone.txt: No such file" in ended[1][1] and "process 1 refused" in ended[0][1]


@pytest.mark.slow
def test_the_guide_runs_as_it_stands(workdir):
    script = re.findall(r"^```(?:bash|sh)\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    port = str(free_port())
    done = subprocess.run(
        ["bash", "-ec", "".join(script).replace("12345", port)],
        cwd=workdir.parents[1],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0 and "error" not in done.stderr, done.stderr
    made, shared = (
        records((workdir.parents[1] / name).read_text())
        for name in ("samples.jsonl", "shared.jsonl")
    )
    assert len(made) == 12 and len(shared) == 3
    table = re.findall(r"^\| (`.*?) \|", GUIDE.read_text(), flags=re.MULTILINE)
    fields = {*re.findall(r"`(\w+)`", " ".join(table))}
    assert all(record.keys() <= fields for record in made)


GOLDEN = Path(__file__).parent / "interop" / "golden" / "bert"


def test_a_checkpoint_of_hugging_face_fills_the_gaps_of_a_sentence():
    """In one step, coldly: the most likely token of `[CLS] text [SEP]`, by a plain forward pass."""
    pretrained = interop.load_pretrained(str(GOLDEN))
    tokenizer = pretrained.tokenizer
    words = sorted(w for w in tokenizer.get_vocab() if w.isalpha() and len(w) > 2)[:3]
    text = f"{words[0]} [MASK] {words[1]} [MASK] {words[2]}"
    ids = tokenizer.encode(f"[CLS] {text} [SEP]", add_special_tokens=False).ids
    logits = bert.logits(pretrained.params, pretrained.config, jnp.array([ids], jnp.int32))[0]
    mask_id = pretrained.config.mask_id
    best = np.argmax(np.asarray(logits.at[:, mask_id].set(-np.inf)), axis=-1)
    filled = [int(best[i]) if token == mask_id else token for i, token in enumerate(ids)]
    done = run(
        "generate", f"--checkpoint={GOLDEN}", f"--prompt={text}", "--steps=1", "--temperature=0",
        "--json",
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["text"] == data.decode(tokenizer, filled[1:-1])
    assert told["checkpoint"] == str(GOLDEN)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--workdir is required, or --checkpoint"),
        (
            [f"--checkpoint={GOLDEN}", "--workdir=x"],
            "--workdir and --checkpoint exclude each other",
        ),
        ([f"--checkpoint={GOLDEN}", "--save"], "--save writes into --workdir"),
        ([f"--checkpoint={GOLDEN}", "--weights=ema"], "is no run: it has one kind of weights"),
        (["--checkpoint={run}", "--prompt=a [MASK]"], "is a run: give it by --workdir"),
        (["--checkpoint=/nowhere/bert", "--prompt=a [MASK]"], "/nowhere/bert"),
    ],
)
def test_a_checkpoint_that_is_none_is_one_line(flags, message, workdir):
    done = run("generate", *flags, code=2, run=workdir)
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
