import json

import numpy as np
import pytest
from command_runs import TEXT

from mdlm_jax import data
from mdlm_jax.writing import sample_files
from mdlm_jax.writing.filling import Filled
from mdlm_jax.writing.prompts import Prompt

TALK = [{"role": "user", "content": "hello"}]
PROMPTS = [Prompt("the [MASK]", "salt"), Prompt("", None, TALK)]
SETTINGS = {"strategy": "exact_count", "steps": 4, "seed": 0, "temperature": 1.0, "forbid": ["a"]}


def records(samples=2, **settings):
    """Texts may hold anything: a line's end, and what other programs take for one."""
    return [
        {
            **sample_files.name_of(prompt, sample),
            "text": f"{sample}\n\u2028\x85é",
            **SETTINGS,
            **settings,
            "evaluations": 4,
            "tokens": [["a", 0, -0.5]],
        }
        for prompt in PROMPTS
        for sample in range(samples)
    ]


def append(path, made):
    with sample_files.appending(path) as append:
        append(made)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "samples.jsonl"


def test_a_file_holds_a_sample_a_line_without_its_tokens(path):
    assert sample_files.begin(path, PROMPTS, 2, SETTINGS) == 0
    assert path.read_bytes() == b""
    made = records()
    append(path, made[:3])
    append(path, made[3:])
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    told = [json.loads(line) for line in lines]
    assert told == [{k: v for k, v in record.items() if k != "tokens"} for record in made]
    assert sample_files.begin(path, PROMPTS, 2, SETTINGS) == 4


def test_a_terminal_without_a_letter_has_it_escaped_and_a_lone_surrogate_all():
    made = {"text": "é早", "tokens": []}
    assert sample_files.line(made) == '{"text": "é早"}'
    assert sample_files.line(made, "ascii") == '{"text": "\\u00e9\\u65e9"}'
    assert sample_files.line({"prompt": "\ud800"}) == '{"prompt": "\\ud800"}'


def test_wherever_it_was_cut_the_job_goes_on_behind_the_last_whole_line(path):
    made = records()
    append(path, made)
    whole = path.read_bytes()
    ends = [end for end, byte in enumerate(whole) if byte == 10]
    near = (end + beside for end in ends for beside in (0, 1, 2))
    for cut in sorted({*range(0, len(whole), 40), *near}):
        path.write_bytes(whole[:cut])
        done = sample_files.begin(path, PROMPTS, 2, SETTINGS)
        assert done == whole[:cut].count(b"\n")
        append(path, made[done:])
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"steps": 8}, "line 1 is a sample of another job: steps is 4 there, 8 here"),
        ({"top_k": 5}, "line 1 .*: top_k is not set there, 5 here"),
        ({"forbid": ["b"]}, r"forbid is \['a'\] there, \['b'\] here"),
        ({"temperature": 0.5}, "temperature is 1.0 there, 0.5 here: take another file"),
        ({"samples": 1}, "holds 4 samples, this job has 2: take another file"),
        ({"samples": 3}, "line 3 .*: prompt is '' there, 'the .MASK.' here"),
        ({"label": "wool"}, "line 1 .*: label is 'salt' there, 'wool' here"),
    ],
)
def test_samples_of_another_job_are_refused_and_stay(path, job, message):
    append(path, records())
    path.write_bytes(path.read_bytes() + b"torn")
    before = path.read_bytes()
    job = dict(job)
    prompts = [PROMPTS[0]._replace(label=job.pop("label", "salt")), PROMPTS[1]]
    with pytest.raises(ValueError, match=message) as error:
        sample_files.begin(path, prompts, job.pop("samples", 2), {**SETTINGS, **job})
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", [b"precious", b"[]", b'{"prompt": "a"}', b"\xff"])
def test_a_file_of_something_else_is_refused_and_stays(path, line):
    path.write_bytes(line + b"\n")
    with pytest.raises(ValueError, match="line 1 is no sample: take another file"):
        sample_files.begin(path, PROMPTS, 2, SETTINGS)
    assert path.read_bytes() == line + b"\n"


def test_a_record_tells_the_text_up_to_its_end():
    tokenizer = data.train_tokenizer([TEXT] * 3, kind="wordpiece", vocab_size=400, lowercase=True)
    special = data.special_ids(tokenizer)
    river, mill = tokenizer.token_to_id("river"), tokenizer.token_to_id("mill")
    filled = Filled(
        number=3,
        tokens=np.array([river, special.sep, special.sep, mill, special.pad, special.mask]),
        step=np.array([-1, 2, 0, 1, -1, -1]),
        log_prob=np.array([0, -0.25, -1, -2, 0, 0]),
        evaluations=3,
    )
    fill = np.array([False, True, True, True, True, False])
    shown = np.array([True, True, True, True, True, False])
    settings = {"prompt": "river {mask:4}", "sample": 0}
    parts = {"fill": fill, "shown": shown, "tokenizer": tokenizer}
    made = sample_files.record(settings, filled, **parts, with_tokens=True)
    assert made["text"] == "river\n\nmill" and made["evaluations"] == 3
    assert "".join(piece for piece, _, _ in made["tokens"]) == made["text"]
    assert [token[1:] for token in made["tokens"]] == [[-1, 0], [2, -0.25], [0, -1], [1, -2]]
    bare = sample_files.record(settings, filled, **parts, with_tokens=False)
    assert bare == {name: value for name, value in made.items() if name != "tokens"}
    assert list(bare)[:2] == ["prompt", "text"]


@pytest.mark.parametrize("text", ["    return x\n", "\n", " \ta\n\nb "])
def test_a_record_keeps_the_white_space_of_its_text(text):
    tokenizer = data.train_tokenizer([text], kind="characters", vocab_size=40, lowercase=False)
    (ids,) = data.encode_documents(tokenizer, [text])  # a separator at the end
    everything = np.ones(len(ids), bool)
    filled = Filled(0, ids, np.arange(len(ids)), np.zeros(len(ids)), len(ids))
    made = sample_files.record(
        {"prompt": "def f(x):"}, filled, fill=everything, shown=everything, tokenizer=tokenizer,
        with_tokens=True,
    )  # fmt: skip
    assert json.loads(sample_files.line(made))["text"] == text
    assert "".join(piece for piece, _, _ in made["tokens"]) == text
