"""What a client was told: a stream that breaks anywhere, and is repeated in other pieces."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.serving.gateway.told import Garbage, OtherVersion, Told, read_chunk

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
DRAW = st.randoms(use_true_random=False)


def stream(texts, draw, chat, number):
    """Chunks of the texts: pieces of random sizes, the choices mixed."""
    head = {"id": f"id-{number}", "created": number, "system_fingerprint": "fp"}
    waiting, at, chunks = dict(enumerate(texts)), [0] * len(texts), []
    if chat:
        for index in waiting:
            delta = {"role": "assistant", "content": ""}
            chunks.append({**head, "choices": [{"index": index, "delta": delta}]})
    while waiting:
        choices = []
        for index in draw.sample([*waiting], draw.randint(1, len(waiting))):
            piece = waiting[index][: draw.randint(1, 7)]
            waiting[index] = waiting[index][len(piece) :]
            choice = {"index": index}
            choice |= {"delta": {"content": piece}} if chat else {"text": piece}
            entries = [{"token": each} for each in piece]
            offsets = [*range(at[index], at[index] + len(piece))]
            choice["logprobs"] = (
                {"content": entries} if chat else {"tokens": [*piece], "text_offset": offsets}
            )
            at[index] += len(piece)
            choice["finish_reason"] = None if waiting[index] else "stop"
            if not waiting[index]:
                del waiting[index]
            choices.append(choice)
        chunks.append({**head, "choices": choices})
    return [*chunks, {**head, "choices": [], "usage": {"completion_tokens": sum(at)}}]


def collected(chunks):
    """What a client makes of the chunks it got."""
    texts, tokens, roles, ends, usage = {}, {}, {}, {}, []
    for chunk in chunks:
        if chunk.get("usage"):
            usage.append(chunk["usage"])
        for choice in chunk["choices"]:
            index, delta = choice["index"], choice.get("delta", {})
            text = (delta.get("content") if "delta" in choice else choice.get("text")) or ""
            texts[index] = texts.get(index, "") + text
            if delta.get("role"):
                roles[index] = roles.get(index, 0) + 1
            if choice.get("finish_reason"):
                ends[index] = ends.get(index, 0) + 1
            logprobs = choice.get("logprobs") or {}
            new = [each["token"] for each in logprobs.get("content", [])]
            tokens[index] = tokens.get(index, []) + (logprobs.get("tokens") or new)
            if "tokens" in logprobs:
                assert len(logprobs["tokens"]) == len(logprobs["text_offset"])
    return texts, tokens, roles, ends, usage


@given(st.lists(TEXT, min_size=1, max_size=3), st.booleans(), st.integers(0, 4), DRAW)
def test_broken_anywhere_and_repeated_in_other_pieces_a_client_gets_it_once(
    texts, chat, breaks, draw
):
    told, got = Told(), []
    for number in range(breaks + 1):
        chunks = stream(texts, draw, chat, number)
        if number < breaks:
            chunks = chunks[: draw.randint(0, len(chunks))]
        told.begin()
        for chunk in chunks:
            before = copy.deepcopy(chunk)
            if (new := told.take(chunk)) is not None:
                got.append(new)
            assert chunk == before, "what a region sent is not changed"
    told.check_end()
    found, tokens, roles, ends, usage = collected(got)
    assert found == dict(enumerate(texts)) and told.characters == sum(map(len, texts))
    assert tokens == {index: [*text] for index, text in enumerate(texts)}
    assert ends == dict.fromkeys(range(len(texts)), 1)
    assert roles == (dict.fromkeys(range(len(texts)), 1) if chat else {})
    assert usage == [{"completion_tokens": sum(map(len, texts))}]
    assert len({(chunk["id"], chunk["created"]) for chunk in got}) == 1, "one answer, one name"


def chunk(text, *, fingerprint="fp", index=0, end=None):
    choice = {"index": index, "text": text, "finish_reason": end}
    return {"system_fingerprint": fingerprint, "choices": [choice]}


def begun(*texts):
    told = Told()
    told.begin()
    for text in texts:
        told.take(chunk(text))
    told.begin()
    return told


def test_another_version_is_refused_and_changes_nothing():
    told = begun("abc")
    with pytest.raises(OtherVersion):
        told.take(chunk("abcdef", fingerprint="other"))
    assert told.take(chunk("abcd"))["choices"][0]["text"] == "d"


@pytest.mark.parametrize(
    "wrong",
    [[chunk("abx")], [chunk("ab"), chunk("x")], [chunk("ab", end="stop")], [chunk("xbcdef")]],
)
def test_another_text_is_refused(wrong):
    told = begun("ab", "c")
    with pytest.raises(Garbage):
        for each in wrong:
            told.take(each)
    assert told.characters == 3, "what was refused was not told"


def test_a_refused_chunk_tells_nothing_of_its_other_choices():
    told = begun("abc")
    both = {"system_fingerprint": "fp", "choices": []}
    both["choices"] = [{"index": 1, "text": "new"}, {"index": 0, "text": "x"}]
    with pytest.raises(Garbage):
        told.take(both)
    told.begin()
    assert told.take(chunk("new", index=1))["choices"][0]["text"] == "new"


def test_a_text_that_goes_on_after_its_end_is_refused():
    told = Told()
    told.begin()
    told.take(chunk("a", end="stop"))
    with pytest.raises(Garbage):
        told.take(chunk("b"))


def test_done_before_the_end_is_refused():
    told = Told()
    told.begin()
    with pytest.raises(Garbage):
        told.check_end()
    told.take(chunk("a"))
    with pytest.raises(Garbage):
        told.check_end()
    told.take(chunk("", end="stop"))
    told.check_end()


def test_an_end_that_was_told_is_not_an_end_of_the_repetition():
    told = Told()
    told.begin()
    told.take(chunk("abc", end="stop"))
    told.begin()
    assert told.take(chunk("ab")) is None
    with pytest.raises(Garbage):
        told.check_end()


GOOD = {"system_fingerprint": "fp", "choices": [{"index": 0, "text": "a"}]}


def test_a_chunk_is_read():
    assert read_chunk(json.dumps(GOOD)) == GOOD
    assert read_chunk('{"error": {"message": "m"}}') == {"error": {"message": "m"}}
    nothing = {"system_fingerprint": "fp", "choices": [{"index": 0, "delta": {"content": None}}]}
    assert read_chunk(json.dumps(nothing)) == nothing


@pytest.mark.parametrize(
    "wrong",
    [
        "", "{", "[]", "3", "[" * 100_000, '{"choices": []}',
        {**GOOD, "system_fingerprint": None}, {**GOOD, "system_fingerprint": ""},
        {**GOOD, "choices": None}, {**GOOD, "choices": [3]}, {**GOOD, "choices": [{"text": "a"}]},
        {**GOOD, "choices": [{"index": "0", "text": "a"}]},
        {**GOOD, "choices": [{"index": 0, "text": 3}]},
        {**GOOD, "choices": [{"index": 0, "delta": "a"}]},
        {**GOOD, "choices": [{"index": 0, "delta": {"content": ["a"]}}]},
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_no_chunk_is_refused(wrong):
    with pytest.raises(Garbage):
        read_chunk(wrong if isinstance(wrong, str) else json.dumps(wrong))
