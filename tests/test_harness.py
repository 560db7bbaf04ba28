"""lm-evaluation-harness on local tasks, asking a tiny model with random weights."""

import itertools
import json
import math

import exported
import jax
import numpy as np
import pytest
from command_runs import TEXT, run

from mdlm_jax.host import parallel
from mdlm_jax.runs import models
from mdlm_jax.writing import answering

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

WORDS = TEXT.split()
OFFLINE = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
QUESTIONS = [
    {
        "question": f"the {first} and the",
        "choices": [second, f"{second} {first}", f"{first} {second} stands"],
        "answer": i % 3,
    }
    for i, (first, second) in enumerate(itertools.pairwise(WORDS[:13]))
]
TEXTS = [" ".join(WORDS), WORDS[0], " ".join(WORDS[:20])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("harness") / "run")


@pytest.fixture(scope="module")
def answerer(folder):
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    return answering.Answerer(models.load(str(folder), mesh), mesh, draws=4, steps=4)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of three tasks: questions, texts, and prompts to be answered."""
    folder = tmp_path_factory.mktemp("tasks")
    answered = [{"question": f"the {word}", "answer": "wool"} for word in WORDS[:5]]
    for name, documents, settings in (
        (
            "river_questions",
            QUESTIONS,
            {
                "output_type": "multiple_choice",
                "doc_to_text": "{{question}}",
                "doc_to_target": "answer",
                "doc_to_choice": "choices",
                "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
            },
        ),
        (
            "river_texts",
            [{"text": text} for text in TEXTS],
            {
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": [{"metric": "word_perplexity"}],
            },
        ),
        (
            "river_answers",
            answered,
            {
                "output_type": "generate_until",
                "doc_to_text": "{{question}}",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": {"until": ["a"], "max_gen_toks": 6},
                "metric_list": [{"metric": "exact_match"}],
            },
        ),
    ):
        lines = folder / f"{name}.jsonl"
        lines.write_text("".join(json.dumps(document) + "\n" for document in documents))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(lines)}},
            "test_split": "test",
            **settings,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    return folder


@pytest.fixture(scope="module")
def told(folder, tasks, tmp_path_factory):
    """What the command printed and wrote."""
    output = tmp_path_factory.mktemp("output") / "results.json"
    done = run(
        "harness", f"--workdir={folder}", "--tasks=river_*", f"--include_path={tasks}",
        "--draws=4", "--steps=4", f"--output={output}", env=OFFLINE,
    )  # fmt: skip
    return done, json.loads(output.read_text())


def test_the_harness_finds_what_the_likelihoods_say(told, answerer):
    done, written = told
    scored = answerer.continuations(
        [(q["question"], " " + choice) for q in QUESTIONS for choice in q["choices"]], greedy=True
    )
    nats = scored.nats.reshape(len(QUESTIONS), 3)
    size = np.array([[len(choice) for choice in q["choices"]] for q in QUESTIONS])
    answers = np.array([q["answer"] for q in QUESTIONS])
    result = written["results"]["river_questions"]
    assert result["acc,none"] == pytest.approx(np.mean(nats.argmin(axis=1) == answers))
    assert result["acc_norm,none"] == pytest.approx(
        np.mean((nats / size).argmin(axis=1) == answers)
    )
    assert written["continuations"] == scored.nats.size and written["draws"] == 4
    assert written["mean_error"] == pytest.approx(scored.error.mean(), rel=1e-4)
    assert written["largest_error"] == pytest.approx(scored.error.max(), rel=1e-4)
    assert "|river_questions" in done.stdout
    assert (
        f"36 continuations, 4 draws at the most: standard error {scored.error.mean():.3f}"
        in done.stdout
    )


def test_the_harness_sums_the_tokens_of_texts(told, answerer):
    words = sum(len(text.split()) for text in TEXTS)
    perplexity = told[1]["results"]["river_texts"]["word_perplexity,none"]
    assert math.log(perplexity) == pytest.approx(answerer.texts(TEXTS).sum() / words, rel=1e-5)


def test_answers_stop_where_the_task_says(folder, tasks):
    from lm_eval.api.instance import Instance

    from mdlm_jax.measuring.lm_eval_adapter import MaskedDiffusion

    asked = MaskedDiffusion(str(folder), steps=4)

    def write(**wishes):
        return asked.generate_until(
            [Instance("generate_until", {}, (f"the {word}", wishes), 0) for word in WORDS[:5]]
        )

    free = write(max_gen_toks=6)
    longest = max(free, key=len)
    stop = longest[len(longest) // 2]
    assert write(max_gen_toks=6, until=stop) == [text.partition(stop)[0] for text in free]
    assert write(max_gen_toks=6, until=["~", stop]) == write(max_gen_toks=6, until=stop) != free


def test_a_choice_that_cannot_be_scored_is_never_chosen_and_told(folder, capsys):
    from lm_eval.api.instance import Instance

    from mdlm_jax.measuring.lm_eval_adapter import MaskedDiffusion

    asked = MaskedDiffusion(str(folder), draws=4)
    choices = [("the river", " wool"), ("the river", ""), ("the river", " old" * 40)]
    told = asked.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in choices])
    assert told[1:] == [(-math.inf, False)] * 2 and -math.inf < told[0][0] < 0
    assert (asked.unscored, len(asked.errors)) == (2, 1)
    assert "note: 2 of 3 continuations have no token of their own" in capsys.readouterr().err


def test_an_answer_has_half_a_row_at_the_most(folder, capsys):
    from lm_eval.api.instance import Instance

    from mdlm_jax.measuring.lm_eval_adapter import MaskedDiffusion

    asked = MaskedDiffusion(str(folder), steps=2)
    (answer,) = asked.generate_until([Instance("generate_until", {}, ("the river", {}), 0)])
    assert answer == asked.answerer.answers(["the river"], tokens=8)[0]
    assert (
        "answers have 8 tokens at most, half a row, where tasks ask for 256"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tasks=nope"], "--tasks: there is no task 'nope'"),
        (
            ["--tasks=river_answers", "--checkpoint=other"],
            "give --workdir of a run, or --checkpoint",
        ),
        (["--tasks=river_answers", "--strategy=nope"], "strategy 'nope' must be one of"),
        (
            ["--tasks=river_answers", "--output=nowhere/x.json"],
            "--output=nowhere/x.json: there is no folder",
        ),
        (["--tasks=river_answers", "--include_path=nowhere"], "there is no such folder"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(folder, tasks, arguments, told):
    arguments = [f"--include_path={tasks}", *arguments]
    done = run("harness", f"--workdir={folder}", *arguments, code=2, env=OFFLINE)
    assert done.stderr.startswith("error: ") and told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_several_processes_are_refused(folder):
    env = {**OFFLINE, "NUM_PROCESSES": "2"}
    done = run("harness", f"--workdir={folder}", "--tasks=x", code=2, env=env)
    assert "NUM_PROCESSES set: the harness runs in one process" in done.stderr
