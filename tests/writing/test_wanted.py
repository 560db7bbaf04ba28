import json

import numpy as np
import pytest
from command_runs import TEXT

from mdlm_jax import data
from mdlm_jax.writing import canvases, prompts, wanted
from mdlm_jax.writing.prompts import Asking, Fields, Prompt
from mdlm_jax.writing.wanted import Wanted

LENGTH = 24
TOKENIZER = data.train_tokenizer([TEXT] * 3, kind="wordpiece", vocab_size=121, lowercase=True)
SPECIAL = data.special_ids(TOKENIZER)
ASKING = Asking(None, "[MASK]")


def ids(text):
    return TOKENIZER.encode(text, add_special_tokens=False).ids


def laid_out(prompt, text, asking=None, framed=False):
    asked = [Prompt(prompt)]
    canvas = canvases.lay_out(asked, TOKENIZER, LENGTH, asking)
    if framed:
        canvas = canvases.as_framed(canvas, TOKENIZER)
    return canvas, wanted.lay_out(canvas, Wanted(asked, [text]), TOKENIZER, asking)[0]


@pytest.mark.parametrize("framed", [False, True])
def test_gaps_hold_the_tokens_of_the_reference(framed):
    size = len(ids("salt"))
    canvas, row = laid_out(f"the {{mask:{size}}} mill", "the salt mill", framed=framed)
    assert row[canvas.shown[0]].tolist() == ids("the salt mill")
    assert row[canvas.fill[0]].tolist() == ids("salt")
    np.testing.assert_array_equal(row[~canvas.shown[0]], canvas.tokens[0][~canvas.shown[0]])


def test_a_response_ends_with_separators():
    canvas, row = laid_out("the mill", "wool", ASKING)
    answer = row[canvas.fill[0]].tolist()
    size = len(ids("wool"))
    assert answer[:size] == ids("wool")
    assert set(answer[size:]) == {SPECIAL.sep}
    assert row[~canvas.fill[0]].tolist() == [*ids("the mill"), SPECIAL.sep]


@pytest.mark.parametrize(
    "prompt, text, asking, told",
    [
        ("the [MASK]", "the old stone mill", None, "must be the whole text, and has"),
        ("a [MASK] b", "b a b", None, "is another text outside of the gaps, 'b' for 'a'"),
        ("the mill", f"{TEXT}", ASKING, "tokens with the end, and the row has room for"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(prompt, text, asking, told):
    with pytest.raises(ValueError, match=f"^prompt '{prompt[:7].replace('[', '.')}.*{told}"):
        laid_out(prompt, text, asking)


def test_nothing_can_be_wanted_of_a_whole_row():
    with pytest.raises(ValueError, match="a prompt is empty"):
        laid_out("", "wool")


def written(path, *records):
    path.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    return path


def test_a_file_is_read_by_the_usual_names_and_those_of_the_run(tmp_path):
    file = written(
        tmp_path / "asked.jsonl",
        {"prompt": "a [MASK]", "reference": "a b"},
        {"question": "who", "reply": "me", "reference": "not me"},
    )
    asked, texts = wanted.read(file, Fields(prompt="question"), "reply")
    assert asked == [Prompt("a [MASK]"), Prompt("who")]
    assert texts == ["a b", "me"]


@pytest.mark.parametrize(
    "name, record, told",
    [
        ("a.jsonl", {"prompt": "a"}, 'line 1 has no text "reply" or "reference"'),
        ("a.jsonl", {"prompt": "a", "reference": 3}, 'line 1 has no text "reply" or "reference"'),
        ("a.jsonl", {"reference": "a"}, 'has no text "prompt"'),
        ("a.txt", {"prompt": "a", "reference": "a"}, "must be .jsonl"),
    ],
)
def test_a_line_without_what_is_wanted_is_refused(name, record, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        wanted.read(written(tmp_path / name, record), prompts.Fields(), "reply")
