"""Whatever a region does, a text is told once, whole and of one version; or one error is."""

import json
import re

import openai
import pytest
from gateway_places import BODY, ask, before, client, expected, idle, post

from benchmarks import failing_region
from benchmarks.fleet import FailingRegion, running


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_an_undisturbed_answer_is_that_of_the_first_region(gateway, well, chat, stream):
    assert ask(gateway, chat=chat, stream=stream, n=2) == expected(chat=chat, n=2)
    assert idle(*well)
    assert well[0].stats()["asked"][-1]["headers"]["authorization"] == "Bearer user"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("mode", sorted({*failing_region.MODES} - {"other_text", "slow"}))
def test_whatever_a_region_does_the_next_one_answers(gateway, well, mode, stream):
    first, second = well
    fault = {"mode": mode, "times": 1, "status": 500}
    for after in (0, 3):
        first.control(**fault, after=after)
        found = ask(gateway, stream=stream, n=2, logprobs=0, chat=after == 3)
        assert found == expected(n=2, chat=after == 3)
    assert idle(first, second)


def test_a_killed_region_loses_no_text(gateway, well):
    first, _ = well
    first.control(delay=0.05)
    killed = []

    def kill():
        if not killed:
            killed.append(first.kill())

    try:
        assert ask(gateway, on_text=kill, n=2) == expected(n=2) and killed
        assert ask(gateway, stream=False) == expected(), "and refuses connections"
    finally:
        first.start()
        first.await_ready()


def test_a_region_that_hangs_loses_no_text(gateway, well):
    first, second = well
    first.control(delay=0.05)
    try:
        assert ask(gateway, on_text=first.pause) == expected()
    finally:
        first.go_on()
    assert idle(first, second), "what it went on with was cancelled"


def test_the_seed_and_the_key_are_the_same_in_every_try(gateway, well):
    first, _ = well
    first.control(mode="reset", after=4, times=1)
    found = ask(gateway, seed=None, n=2)
    one, two = (each.stats()["asked"][-1] for each in well)
    assert one["body"] == two["body"] and one["body"]["seed"] is not None
    assert found == expected(seed=one["body"]["seed"], n=2)
    assert one["headers"]["x-request-key"] == two["headers"]["x-request-key"]
    assert one["headers"]["x-request-id"] == two["headers"]["x-request-id"]
    left = [float(each["headers"]["x-request-timeout"]) for each in (one, two)]
    assert 6 >= left[0] > left[1] > 5, "what is left of the deadline is passed on"


def test_usage_and_provisional_events_are_told_once(gateway, well):
    """Of a stream that broke: events that are not text come from the first try only."""
    first, _ = well
    first.control(mode="end", after=5, times=1)
    create = client(gateway).completions.create
    chunks = [*create(**BODY, stream=True, stream_options={"include_usage": True})]
    usage = [chunk.usage for chunk in chunks if chunk.usage]
    assert [each.completion_tokens for each in usage] == [len(expected()[0])]
    assert len({chunk.id for chunk in chunks}) == 1

    first.control(mode="end", after=5, times=1)
    raw = post(gateway, {**BODY, "stream": True, "canvases": True})[1]
    names = re.findall(r"^event: (\w+)$", raw, re.MULTILINE)
    assert set(names) == {"canvas"} and 0 < len(names) <= 6
    assert raw.index("event: canvas") < raw.index('"text": "'), "at once"
    assert raw.endswith("data: [DONE]\n\n")


def test_two_versions_never_mix(well):
    other = FailingRegion(fingerprint="fp_2")
    first, second = well
    with running(other), before(first, other) as one:
        first.control(mode="reset", after=4, times=1)
        assert ask(one) == expected(), "the first region is asked once more"
        first.control(mode="reset", after=4)
        status, raw, _ = post(one, {**BODY, "stream": True})
        assert status == 200 and "[DONE]" not in raw
        chunks = [json.loads(line[6:]) for line in raw.splitlines() if line]
        assert {chunk["system_fingerprint"] for chunk in chunks[:-1]} == {"fp_1"}
        text = "".join(choice["text"] for chunk in chunks[:-1] for choice in chunk["choices"])
        assert text and expected()[0].startswith(text)
        error = chunks[-1]["error"]
        assert error["code"] == "region_failed" and "another version" in error["message"]
        assert idle(other), "its stream was cancelled"

        with pytest.raises(openai.APIError, match="another version"):
            ask(one)
        # Before any text was told, another version may write it all.
        first.control(mode="reset", after=0)
        assert ask(one) == ask(one, stream=False) == expected(fingerprint="fp_2")
    third = FailingRegion(fingerprint="fp_2")
    with running(third), before(first, third, second) as three:
        first.control(mode="reset", after=4)
        assert ask(three) == expected(), "the third region has the version of the first"


def test_another_text_of_the_same_version_is_not_told(gateway, well):
    """No region writes it; if one does, the client gets no letter of it."""
    first, second = well
    first.control(mode="reset", after=8, times=1)
    second.control(mode="other_text")
    assert ask(gateway) == expected(), "of the first region, asked once more"
    first.control(mode="reset", after=8)
    with pytest.raises(openai.APIError, match="another text than what was told of it"):
        ask(gateway)


def test_a_text_goes_on_with_the_steps_that_a_policy_gave_it(gateway, well):
    """Whatever the policies of the other regions would give now."""
    first, second = well
    first.control(mode="reset", after=5, times=1, steps=8)
    second.control(steps=2)
    try:
        assert ask(gateway, n=2) == expected(n=2, steps=8) != expected(n=2)
        body = second.stats()["asked"][-1]["body"]
        assert body["policy"] == "pinned" and body["steps"] == 8
        first.control(mode="status", status=500, times=1, steps=8)
        assert ask(gateway) == expected(steps=2), "nothing was begun in the first"
    finally:
        for each in well:
            each.control()


@pytest.mark.slow  # it waits for timeouts
@pytest.mark.parametrize("stream", [False, True])
def test_where_all_regions_fail_there_is_one_clear_error(gateway, well, stream):
    for each in well:
        each.control(mode="status", status=500)
    with pytest.raises(openai.InternalServerError) as told:
        ask(gateway, stream=stream)
    assert told.value.status_code == 502 and told.value.code == "region_failed"
    assert "a: it answered 500; b: it answered 500" in str(told.value)
    for each in well:
        each.control(mode="hang")
    with pytest.raises(openai.InternalServerError) as told:
        ask(gateway, stream=stream)
    assert told.value.status_code == 504
