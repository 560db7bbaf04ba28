"""What is told of a row piece by piece is its text, to the character, in whatever order."""

import random

import numpy as np
import pytest
from command_runs import TEXT

from mdlm_jax import data, strategies
from mdlm_jax.serving.jobs import Job, Written
from mdlm_jax.serving.offering import texts
from mdlm_jax.serving.offering.texts import Extent, Row

CORPUS = [
    TEXT,
    "the well-known mill's price: 3.5 (of salt) – it's 10,000 € or more.",
    "ä日本語 né",
] * 3
KINDS = ("wordpiece", "bpe", "characters")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    size = {"wordpiece": 200, "bpe": 300, "characters": 80}[request.param]
    return data.train_tokenizer(CORPUS, kind=request.param, vocab_size=size, lowercase=False)


def row_of(tokens, fill, tokenizer, strategy=None, end_id=None, **extent):
    mask = data.special_ids(tokenizer).mask
    job = Job(
        tokens=np.where(fill, mask, tokens).astype(np.int32),
        fill=fill,
        strategy=strategy or strategies.exact_count(),
        steps=64,
        seed=0,
        end_id=end_id,
    )
    return Row(job, Extent(np.ones(len(tokens), bool), **extent))


def written_in(row, tokens, order, tokenizer, draw):
    """Events as the places are written in this order, some at a time; at last, what is done."""
    canvas, step = row.job.tokens.copy(), np.full(len(tokens), -1)
    log_prob = np.zeros(len(tokens), np.float32)
    for number, place in enumerate(order):
        canvas[place], step[place] = tokens[place], number
        if draw.random() < 0.6:
            yield Written(canvas.copy(), step.copy(), log_prob, number, False)
    if row.job.end_id is not None:
        ends = row.job.fill & (canvas == row.job.end_id)
        dropped = row.job.fill & (np.cumsum(ends) - ends > 0)
        canvas[dropped], step[dropped] = data.special_ids(tokenizer).pad, -1
    yield Written(canvas, step, log_prob, len(order), True)


def told(row, events, tokenizer):
    """The pieces as a stream sends them, and what is read at the end."""
    sent, mask = "", data.special_ids(tokenizer).mask
    for event in events:
        made = texts.read(row, event, tokenizer, mask)
        sent += texts.fresh(sent, made)
        if made.reason is not None:
            break
    return sent, made, event


def random_ids(tokenizer, draw, size):
    """Fragments of text and any tokens: bytes that are no character, pieces without a word."""
    special, ids = data.special_ids(tokenizer), []
    while len(ids) < size:
        if draw.random() < 0.6:
            words = " ".join(draw.choices(CORPUS, k=1)).split()
            start = draw.randrange(len(words))
            ids += tokenizer.encode(" ".join(words[start : start + draw.randint(1, 5)])).ids
        else:
            ids.append(draw.randrange(tokenizer.get_vocab_size()))
    return np.array([special.sep if i == special.mask else i for i in ids[:size]], np.int32)


@pytest.mark.parametrize("seed", range(40))
def test_pieces_of_any_row_are_its_text(tokenizer, seed):
    draw = random.Random(seed)
    tokens = random_ids(tokenizer, draw, 24)
    fill = np.array([draw.random() < 0.7 for _ in tokens])
    fill[draw.randrange(len(fill))] = True
    end = data.special_ids(tokenizer).sep if draw.random() < 0.5 else None
    row = row_of(tokens, fill, tokenizer, end_id=end)
    order = np.flatnonzero(fill).tolist()
    draw.shuffle(order)
    sent, made, event = told(row, written_in(row, tokens, order, tokenizer, draw), tokenizer)
    places = texts.final_places(row, event, data.special_ids(tokenizer).mask)
    assert event.done and sent == made.text == data.decode(tokenizer, event.tokens[places])
    pieces = texts.tokens_of(row, event, made, tokenizer)
    assert "".join(token.piece for token in pieces) == made.text
    assert [t.offset for t in pieces] == [
        len("".join(t.piece for t in pieces[:i])) for i in range(len(pieces))
    ]


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_ends_the_text_where_it_does_whatever_came_at_once(tokenizer, seed):
    """From left to right by single places, and all in one event."""
    draw = random.Random(seed)
    tokens = random_ids(tokenizer, draw, 20)
    fill = np.ones(20, bool)
    whole = data.decode(tokenizer, tokens)
    if len(whole) < 9:
        pytest.skip("nothing to stop at")
    places = [draw.randrange(1, len(whole) - 3) for _ in range(2)]
    stops = tuple(whole[place : place + draw.randint(1, 3)] for place in places)
    row = row_of(tokens, fill, tokenizer, stops=stops, opens=True)
    order = list(range(20))
    slowly = told(row, written_in(row, tokens, order, tokenizer, draw), tokenizer)
    *_, last = written_in(row, tokens, order, tokenizer, draw)
    sent, made, event = told(row, [last], tokenizer)
    assert slowly[0] == sent and slowly[1].reason == made.reason == "stop"
    assert not any(stop in sent for stop in stops)
    ends = {len(sent) + len(stop) for stop in stops if whole[len(sent) :].startswith(stop)}
    assert ends and all(stop not in whole[: min(ends) - 1] for stop in stops)
    pieces = texts.tokens_of(row, event, made, tokenizer)
    assert "".join(token.piece for token in pieces) == sent


def test_what_may_be_taken_back_is_told_when_the_row_is_done(tokenizer):
    tokens = random_ids(tokenizer, random.Random(3), 12)
    fill = np.arange(12) >= 4
    row = row_of(tokens, fill, tokenizer, strategies.remask("cap", 0.1))
    *before, last = written_in(row, tokens, range(4, 12), tokenizer, random.Random(3))
    mask = data.special_ids(tokenizer).mask
    given = {texts.read(row, event, tokenizer, mask).text for event in before}
    whole = texts.read(row, last, tokenizer, mask).text
    assert given and all(len(text) < len(whole) for text in given)
    assert len(given) == 1  # the given text alone, whatever is written behind it


@pytest.mark.parametrize("pieces", ["mill ' v ##e a", "well - k ##n", "3 . 5", "mill ' s ##t a"])
def test_a_decoder_that_looks_ahead_is_waited_for(pieces):
    """The space before an apostrophe depends on the end of the word behind it."""
    tokenizer = data.train_tokenizer(CORPUS, kind="wordpiece", vocab_size=200, lowercase=False)
    ids = [tokenizer.token_to_id(piece) for piece in f"the {pieces} mill mill mill".split()]
    if None in ids:
        ids = [i for piece in f"the {pieces} mill mill".split() for i in _spelt(tokenizer, piece)]
    tokens = np.array(ids, np.int32)
    row = row_of(tokens, np.ones(len(tokens), bool), tokenizer)

    class Always:
        random = staticmethod(lambda: 0.0)

    sent, made, _ = told(
        row, written_in(row, tokens, range(len(tokens)), tokenizer, Always), tokenizer
    )
    assert sent == made.text == data.decode(tokenizer, tokens)


def _spelt(tokenizer, piece):
    """A word letter by letter."""
    bare = piece.removeprefix("##")
    inner = [f"##{letter}" for letter in bare]
    first = inner[0] if piece.startswith("##") else bare[0]
    return [tokenizer.token_to_id(each) for each in (first, *inner[1:])]


def words(tokenizer, text):
    return np.array(tokenizer.encode(text).ids, np.int32)


@pytest.fixture(scope="module")
def bpe():
    return data.train_tokenizer(CORPUS, kind="bpe", vocab_size=300, lowercase=False)


@pytest.mark.parametrize(
    ("extent", "expected"),
    [
        ({"before": ("the river",)}, " runs past"),
        ({"before": ("the river",), "echo": True}, "the river runs past"),
        ({"before": ("[SEP]the river", "the river")}, " runs past"),
        ({"before": ("the river",), "stops": ("s p", "zz")}, " run"),
        ({"before": ("the river",), "stops": ("river",)}, " runs past"),
        ({"before": ("the river",), "stops": ("river",), "echo": True}, "the river runs past"),
        ({"before": ("the river",), "after": (" past",)}, " runs"),
        ({"before": ("the river",), "after": ("  past", " past")}, " runs"),
    ],
)
def test_the_answer_is_what_lies_behind_the_prompt_and_before_the_suffix(bpe, extent, expected):
    parts = [words(bpe, text) for text in ("the river", " runs", " past")]
    tokens = np.concatenate(parts)
    fill = np.arange(len(tokens)) >= len(parts[0])
    if "after" in extent:
        fill &= np.arange(len(tokens)) < len(parts[0]) + len(parts[1])
    row = row_of(tokens, fill, bpe, opens=True, **extent)
    order = np.flatnonzero(fill).tolist()[::-1]
    sent, made, _ = told(row, written_in(row, tokens, order, bpe, random.Random(0)), bpe)
    assert sent == made.text == expected
    assert made.reason == ("stop" if expected == " run" else "length")


def test_an_end_of_text_is_a_reason_and_is_not_counted(bpe):
    special = data.special_ids(bpe)
    tokens = np.concatenate([words(bpe, "the old mill"), [special.sep], words(bpe, " salt")])
    fill = np.ones(len(tokens), bool)
    row = row_of(tokens, fill, bpe, end_id=special.sep, opens=True)
    *_, last = written_in(row, tokens, range(len(tokens)), bpe, random.Random(0))
    made = texts.read(row, last, bpe, special.mask)
    assert (made.text, made.reason) == ("the old mill", "stop")
    count = len(words(bpe, "the old mill"))
    assert texts.count(row, last, None, special.mask) == count
    assert texts.count(row, last, texts.tokens_of(row, last, made, bpe), special.mask) == count


def test_a_canvas_shows_what_is_written_anywhere(bpe):
    tokens = words(bpe, "the old mill")
    fill = np.arange(len(tokens)) >= 2
    row = row_of(tokens, fill, bpe)
    canvas, step = row.job.tokens.copy(), np.full(len(tokens), -1)
    canvas[-1], step[-1] = tokens[-1], 3
    event = Written(canvas, step, np.full(len(tokens), -0.5, np.float32), 4, False)
    told = texts.canvas_of(row, event, bpe)
    pieces = [token[0] for token in told["tokens"]]
    assert "".join(filter(None, pieces[:2])) and pieces[2:-1] == [None] * (len(tokens) - 3)
    assert told["tokens"][-1] == [pieces[-1], 3, -0.5]
    assert told["written"] == [None] * (len(tokens) - 3) + [tokens[-1]]
