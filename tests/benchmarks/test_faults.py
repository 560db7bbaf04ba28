"""The benchmark of faults, with few of them: it breaks no promise, and would tell if one broke."""

import json

import pytest

from benchmarks import faults


@pytest.mark.slow
def test_faults_under_load_break_no_promise(capsys):
    assert faults.main(["--faults=24", "--clients=8"]) == 0
    printed = capsys.readouterr().out
    told = json.loads(printed.splitlines()[-1])
    assert told["wrong"] == told["hung"] == 0 and not any(told["still_running"].values())
    assert told["texts"] > 0.8 * told["requests"] > 50
    assert told["tries"]["broken"] > 0 and "kill     3" in printed


CHUNK = {"system_fingerprint": "fp", "id": "1", "choices": [{"index": 0, "text": "ab"}]}
DONE = "data: [DONE]\n\n"


def judged(raw, *, stream=True, status=200, kind="text/event-stream"):
    return faults._judged(status, kind, raw, stream, ["abc"])


def event(chunk):
    return f"data: {json.dumps(chunk)}\n\n"


REST = {**CHUNK, "choices": [{"index": 0, "text": "c"}]}
ERROR = {"error": {"message": "m", "code": "region_failed"}}


def test_a_client_takes_a_text_or_one_clear_error():
    assert judged(event(CHUNK) + event(REST) + DONE) == "text"
    assert judged(event(CHUNK) + event(ERROR)) == "region_failed in a stream"
    assert judged(json.dumps(ERROR), status=502) == "region_failed"
    whole = {"choices": [{"index": 0, "text": "abc"}]}
    assert judged(json.dumps(whole), stream=False, kind="application/json") == "text"


@pytest.mark.parametrize(
    "raw",
    [
        event(CHUNK) + DONE,
        event(CHUNK) + event(CHUNK) + DONE,
        event(CHUNK) + event({**REST, "system_fingerprint": "other"}) + DONE,
        event(CHUNK) + event({**REST, "id": "2"}) + DONE,
        event(REST) + event(ERROR),
        event(CHUNK) + event({"error": {"message": "", "code": None}}),
        event(CHUNK) + event(REST),
        "",
    ],
    ids=range(8),
)
def test_a_client_sees_what_is_wrong(raw):
    with pytest.raises((faults.Wrong, KeyError, IndexError)):
        judged(raw)
