"""The gateway before a real server: what it relies on is what the server does."""

import json
import types

import exported
import pytest
from gateway_places import before, client, metrics, post, wait_until

from benchmarks import faults
from benchmarks.fleet import Wire, running

BODY = {"model": "tiny", "prompt": "the {mask:24} and", "n": 3, "seed": 5, "logprobs": 0}
TALK = {"model": "talk", "messages": [{"role": "user", "content": "where"}], "n": 2, "seed": 5}


@pytest.fixture(scope="module")
def place(server):
    """The server at two addresses: one of a wire that can fail, and its own."""
    port = int(server.address.rpartition(":")[2])
    wire = Wire(types.SimpleNamespace(port=port))
    direct = types.SimpleNamespace(url=server.address)
    with running(wire), before(wire, direct) as gateway:
        yield server, wire, gateway


def collected(chunks, chat):
    """Texts, tokens, ends and usage of a stream."""
    texts, tokens, ends, usage = {}, {}, {}, []
    for chunk in chunks:
        usage += [chunk.usage.to_dict()] if chunk.usage else []
        for each in chunk.choices:
            text = each.delta.content if chat else each.text
            texts[each.index] = texts.get(each.index, "") + (text or "")
            if each.logprobs:
                found = each.logprobs.to_dict()
                kept = tokens.setdefault(each.index, [])
                if chat:
                    kept += found["content"]
                else:
                    kept += zip(found["tokens"], found["token_logprobs"], strict=True)
            if each.finish_reason:
                assert ends.setdefault(each.index, each.finish_reason) == each.finish_reason
    return texts, tokens, ends, usage


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("mode", ["reset", "cut", "garble", "swallow"])
def test_a_stream_of_a_server_goes_on_to_the_bit(place, mode, chat):
    server, wire, gateway = place
    body = {**(TALK | {"logprobs": True} if chat else BODY), "stream": True}
    body["stream_options"] = {"include_usage": True}

    def ask(of):
        api = of.chat.completions if chat else of.completions
        return collected(api.create(**body), chat)

    undisturbed = ask(server.client)
    for _ in range(4):  # at a random place
        wire.fail(mode)
        assert ask(client(gateway)) == undisturbed
    told = metrics(gateway)
    assert sum(value for name, value in told.items() if "tries" in name and "ok" not in name)


def test_a_whole_answer_is_the_servers(place):
    server, wire, gateway = place
    undisturbed = server.client.completions.create(**BODY)
    wire.fail("reset")
    found = client(gateway).completions.create(**BODY)
    assert found.choices == undisturbed.choices and found.usage == undisturbed.usage
    assert found.system_fingerprint == undisturbed.system_fingerprint and found.seed == 5


def test_the_seed_is_told_and_gives_the_text_again(place):
    server, _, gateway = place
    body = {key: value for key, value in BODY.items() if key != "seed"}
    found = client(gateway).completions.create(**body)
    again = server.client.completions.create(**body, seed=found.seed)
    assert again.choices == found.choices


def test_deadlines_ids_and_refusals_are_the_same_on_both_sides(place):
    server, _, gateway = place
    long = {**BODY, "strategy": "remask(cap, 0.1)", "steps": 100_000, "timeout": 0.4}
    for body in (long, {**long, "stream": True}):
        status, raw, headers = post(gateway, body, x_request_id="mine")
        assert "deadline" in raw and status == (200 if "text" in raw else 504)
        assert headers["x-request-id"] == "mine"
    wait_until(lambda: [each["id"] for each in server.told].count("mine") >= 2)
    status, raw, _ = post(gateway, {**BODY, "stepz": 3})
    assert status == 400 and json.loads(raw)["error"]["param"] == "stepz"
    assert post(gateway, {**BODY, "model": "other"})[0] == 404
    assert [each.id for each in client(gateway).models.list()] == ["tiny", "pairs", "talk"]


def test_provisional_canvases_come_through(place):
    """So many steps take more than one round."""
    _, _, gateway = place
    long = {"strategy": "remask(cap, 0.1)", "steps": 150}
    raw = post(gateway, {**BODY, **long, "stream": True, "canvases": True})[1]
    assert raw.count("event: canvas") > 3 and raw.endswith("data: [DONE]\n\n")


@pytest.mark.slow
def test_servers_that_are_killed_lose_no_text(tmp_path, capsys):
    """Two processes, with what befalls them once each."""
    folder = exported.write(tmp_path / "tiny", kind="bpe", vocab_size=300, length=96)
    few = ["--regions=2", "--faults=8", "--clients=4"]
    assert faults.main([f"--workdir={folder}", *few]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["wrong"] == told["hung"] == 0 and told["texts"] > 0.8 * told["requests"] > 20
    assert told["continued"] > 0
