"""What a tokenizer does not know is told with its share, its place and what to do."""

import random

import numpy as np
import pytest

from mdlm_jax import data

WORD = "ผพพบมบฆฆลฒฎรมฤฆขษปฤมรสคซฮปฉฟกภสษดฅสถฌฟฏทฆ"


@pytest.fixture
def prepared(tmp_path):
    def prepare(texts, **changes):
        path = tmp_path / "text.txt"
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        fields = {"documents": "line", "length": 4, "vocab_size": 400, **changes}
        config = data.Config(source="text_files", files=str(path), **fields)
        return data.prepare(config, tmp_path / "cache")

    return prepare


def thai(count=60, size=160):
    draw = random.Random(0)
    return ["".join(draw.choices(WORD, k=size)) for _ in range(count)]


def told(prepared):
    return data.unknown_warning(prepared.card, prepared.tokenizer)


def test_text_without_spaces_is_told_with_what_it_needs(prepared, tmp_path):
    line = told(prepared(thai()))
    assert line.startswith("100.0% of the training text is unknown to the tokenizer, ")
    assert f"…' (160 characters) of {tmp_path}/text.txt: WordPiece knows no word of more" in line
    assert "take data.tokenizer=bpe, by which nothing is unknown, or data.tokenizer=ch" in line
    assert "\n" not in line and any(text[:20] in line for text in thai())


def test_where_it_leaves_too_little_for_a_row_that_is_told_too(prepared):
    with pytest.raises(ValueError, match=r"fewer than one row of length 64.*; 100\.0% of the trai"):
        prepared(thai(), length=64)


@pytest.mark.parametrize("tokenizer", ["bpe", "characters"])
def test_what_is_offered_knows_such_text(prepared, tokenizer):
    made = prepared(thai(), tokenizer=tokenizer)
    assert made.card["unknown"] is None and told(made) is None
    train = made.splits["train"].tokens.reshape(-1)
    first = data.decode(made.tokenizer, train[: np.flatnonzero(train == made.sep_id)[0]])
    assert first in thai()


def test_the_share_is_of_characters_and_small_ones_are_not_told(prepared):
    """Eight of 308 lines, each a token: of the tokens few, of the characters many."""
    words = [f"the old mill {i}" for i in range(300)]
    made = prepared([*words, *thai(8, 400)])
    train, share = made.card["splits"]["train"], made.card["unknown"]["share"]
    assert 1 <= train["unknown_tokens"] <= 8 < 0.02 * train["tokens"]
    expected = 400 * train["unknown_tokens"] / train["characters"]
    assert share == pytest.approx(expected, abs=1e-9) and share > 0.2
    few = prepared([*(f"the old mill {i}" for i in range(3000)), "é" * 101], held_out=0.01)
    assert 0 < few.card["unknown"]["share"] < 0.01 and told(few) is None


def test_rare_letters_are_told_with_the_vocabulary_that_has_room(prepared):
    letters = [chr(0x4E00 + i) for i in range(600)]
    texts = ["".join(random.Random(i).choices(letters, k=30)) for i in range(200)]
    line = told(prepared(texts, tokenizer="characters", vocab_size=300))
    assert (
        "take data.tokenizer=bpe, by which nothing is unknown, or a data.vocab_size above 300"
        in (line)
    )
    assert "characters)" not in line and "WordPiece" not in line


def test_a_tokenizer_that_is_given_is_to_be_another(prepared, tmp_path):
    made = data.train_tokenizer(["the mill"] * 3, kind="wordpiece", vocab_size=150, lowercase=True)
    made.save(str(tmp_path / "given.json"))
    line = told(
        prepared([f"漢字 the {i}" for i in range(60)], tokenizer=str(tmp_path / "given.json"))
    )
    assert "take a tokenizer that knows it, or data.tokenizer=bpe" in line
