import json

import numpy as np
from command_runs import TEXT

from benchmarks import gaps
from mdlm_jax import data
from mdlm_jax.writing import canvases, prompts, wanted

TOKENIZER = data.train_tokenizer([TEXT] * 3, kind="wordpiece", vocab_size=150, lowercase=True)


def test_a_prompt_fits_its_reference():
    """`wanted.lay_out` refuses what does not, token for token."""
    made = [gaps.prompt(TEXT, TOKENIZER, np.random.default_rng(n), 0.4) for n in range(20)]
    assert {each["reference"] for each in made} == {TEXT}
    asked = [prompts.Prompt(each["prompt"]) for each in made]
    canvas = canvases.lay_out(asked, TOKENIZER, 128, None)
    rows = wanted.lay_out(canvas, wanted.Wanted(asked, [TEXT] * 20), TOKENIZER, None)
    shares = canvas.fill.sum(axis=1) / canvas.shown.sum(axis=1)
    assert shares.min() >= 0.4 and shares.max() < 0.6
    assert len({each["prompt"] for each in made}) == 20
    assert data.decode(TOKENIZER, rows[0][canvas.shown[0]]) == TEXT


def test_texts_end_with_a_whole_word():
    ids = [
        token
        for document in data.encode_documents(TOKENIZER, [TEXT, TEXT[:20], f"Ж {TEXT}", TEXT[10:]])
        for token in document
    ]
    rows = np.array(ids[: len(ids) // 8 * 8], np.int32).reshape(-1, 8)
    found = [*gaps.texts(data.Rows(rows, np.zeros(len(rows), np.int32)), TOKENIZER, 20)]
    assert len(found) == 2
    for text, whole in zip(found, (TEXT, TEXT[10:]), strict=True):
        assert whole.startswith(f"{text} ")
        assert 15 <= len(TOKENIZER.encode(text, add_special_tokens=False).ids) <= 20


def test_a_line_is_a_prompt_of_ab(tmp_path):
    file = tmp_path / "gaps.jsonl"
    made = gaps.prompt("wool and honey", TOKENIZER, np.random.default_rng(0), 0.1)
    file.write_text(json.dumps(made))
    asked, texts = wanted.read(file, prompts.Fields())
    assert texts == ["wool and honey"] and prompts.has_gaps(asked[0].text, "[MASK]")
