"""A policy's stages over HTTP: what a request gets, what it is told, and who is not asked."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import tiny_server
from serving.watching.test_metrics import figures, total

from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.watching.policy import Band, Policy, Stage, State, Times
from mdlm_jax.serving.watching.steering import Steering

PROMPT = "the {mask:12} mill"
STAGES = (Stage(), Stage(share=0.5), Stage(steps=1), Stage(steps=2, model="pairs"))


@pytest.fixture(scope="module")
def steering():
    engine = Engine(queue=2)
    return Steering(Policy(STAGES, {"queue_age_s": Band(2.0, 0.5)}), engine)


@pytest.fixture(scope="module")
def steered(models, steering):
    served = {name: models[name] for name in ("tiny", "pairs")}
    with tiny_server.running(served, engine=steering._engine, steering=steering) as server:
        yield server


@pytest.fixture
def at(steering):
    def move(stage):
        steering._state = State(stage)

    yield move
    move(0)


def ask(server, **fields):
    extra = {name: fields.pop(name) for name in ("steps", "policy") if name in fields}
    fields = {"model": "tiny", "prompt": PROMPT, "seed": 3} | fields
    return server.client.completions.create(**fields, extra_body=extra)


def test_a_stage_gives_fewer_steps_and_says_so(steered, server, at):
    """And the text is that of so many steps."""
    for stage, asked, given in [(0, 6, 6), (1, 6, 3), (1, 5, 3), (2, 6, 1), (1, None, 2)]:
        at(stage)
        answer = ask(steered, **({} if asked is None else {"steps": asked}))
        assert answer.policy == {"stage": stage, "pinned": False, "steps": given}
        assert answer.usage.evaluations == given
        plain = ask(server, steps=given)  # of a server without a policy
        assert answer.choices == plain.choices
        assert answer.system_fingerprint == plain.system_fingerprint
        assert "policy" not in plain.to_dict()


def test_a_stream_says_so_in_its_first_event(steered, at):
    at(1)
    with httpx.stream(
        "POST",
        f"{steered.address}/v1/completions",
        json={"model": "tiny", "prompt": PROMPT, "steps": 8, "stream": True},
    ) as stream:
        lines = [line.removeprefix("data: ") for line in stream.iter_lines() if line]
    first, *others = map(json.loads, lines[:-1])
    assert first["policy"] == {"stage": 1, "pinned": False, "steps": 4}
    assert others and not any("policy" in event for event in others)


def test_a_pinned_request_keeps_its_steps(steered, at):
    at(2)
    answer = ask(steered, steps=6, policy="pinned")
    assert answer.policy == {"stage": 0, "pinned": True, "steps": 6}
    assert answer.usage.evaluations == 6
    assert ask(steered, steps=6, policy="adaptive").usage.evaluations == 1
    with pytest.raises(openai.BadRequestError, match="policy must be 'adaptive' or 'pinned'"):
        ask(steered, policy="fast")


def test_a_pinned_request_is_turned_away_when_all_is_full(steered, at):
    long = {"strategy": "remask(cap, 0.1)", "steps": 100_000, "policy": "pinned"}
    at(2)
    streams = []
    for active, queued in ((2, 0), (2, 2)):
        streams.append(
            steered.client.completions.create(
                model="tiny", prompt=PROMPT, n=2, stream=True, extra_body=long
            )
        )

        def now(lanes=steered.engine.stats):
            found = lanes().lanes
            return sum(x.active for x in found), sum(x.queued for x in found)

        tiny_server.wait_until(lambda active=active, queued=queued: now() == (active, queued))
    with pytest.raises(openai.RateLimitError):
        steered.client.completions.create(model="tiny", prompt=PROMPT, extra_body=long)
    for stream in streams:
        stream.close()


def test_a_stage_may_have_another_model(steered, at):
    """Where that cannot take the request, the one that was asked for writes it."""
    at(3)
    answer = ask(steered, prompt="the {mask:4}", steps=6)
    assert answer.model == "pairs"
    assert answer.policy == {"stage": 3, "pinned": False, "model": "pairs", "steps": 2}
    own = ask(steered, model="pairs", prompt="the {mask:4}", steps=2, policy="pinned")
    assert answer.choices == own.choices and answer.system_fingerprint == own.system_fingerprint
    # Of pairs, it answers a prompt without a gap, and so cannot echo it.
    kept = ask(steered, prompt="the", echo=True, max_tokens=4, steps=6)
    assert kept.model == "tiny"
    assert kept.policy == {"stage": 3, "pinned": False, "steps": 2}
    direct = ask(steered, model="pairs", prompt="the {mask:4}", steps=6)
    assert direct.policy == {"stage": 3, "pinned": False, "steps": 2}
    # What nobody could take is refused as ever.
    with pytest.raises(openai.BadRequestError, match="strategy 'nothing' must be one of"):
        steered.client.completions.create(
            model="tiny", prompt=PROMPT, extra_body={"strategy": "nothing"}
        )


def test_conversations_are_steered_too(models, at, steering):
    with tiny_server.running(
        {"talk": models["talk"]}, steering=Steering(steering.policy, steering._engine)
    ) as talking:
        talk = talking.client.chat.completions
        messages = [{"role": "user", "content": "the mill"}]
        answer = talk.create(model="talk", messages=messages, extra_body={"steps": 3})
        assert answer.policy == {"stage": 0, "pinned": False, "steps": 3}


def test_the_stage_is_told_to_prometheus_and_to_the_log(steered, at):
    before = figures(steered)
    at(1)
    ask(steered)
    ask(steered, policy="pinned")
    tiny_server.wait_until(lambda: [told.get("stage") for told in steered.told[-2:]] == [1, 0])
    after = figures(steered)
    assert total(after, "mdlm_policy_stage") == 1

    def grown(**labels):
        name = "mdlm_policy_requests_total"
        return total(after, name, **labels) - total(before, name, **labels)

    assert grown() == 2 and grown(stage="1", pinned="false") == grown(stage="0", pinned="true") == 1
    assert total(after, "mdlm_policy_moves_total", direction="down") == 0


@pytest.mark.slow
def test_under_real_load_it_moves_down_and_back(models, server):
    """Clients in threads, an engine that writes, and a policy that looks by itself."""
    engine = Engine(queue=64)
    bands = {"queue_age_s": Band(0.2, 0.05)}
    made = Policy(STAGES[:3], bands, Times(settle_s=0.3, dwell_s=1.0))
    steering = Steering(made, engine)
    tiny = {"tiny": models["tiny"]}
    with (
        tiny_server.running(tiny, engine=engine, steering=steering) as busy,
        steering.looking(0.05),
        ThreadPoolExecutor(24) as clients,
    ):
        long = {"strategy": "remask(cap, 0.1)", "steps": 300}

        def one(seed):
            return busy.client.completions.create(
                model="tiny", prompt=PROMPT, seed=seed, extra_body=long, timeout=120
            )

        answers = list(clients.map(one, range(96)))
        tiny_server.wait_until(lambda: steering.stage == 0, seconds=20)
        calm = one(0)
    stages = [answer.policy["stage"] for answer in answers]
    assert {0, 2} <= set(stages) and calm.policy["stage"] == 0
    for answer in answers:
        steps = {0: 300, 1: 150, 2: 1}[answer.policy["stage"]]
        assert answer.usage.evaluations <= answer.policy["steps"] == steps
    assert steering.moves["down"] >= 2 and steering.moves["back"] == steering.moves["down"]
    for seed in map(stages.index, set(stages)):  # the text of so many steps
        own = {**long, "steps": answers[seed].policy["steps"]}
        alone = server.client.completions.create(
            model="tiny", prompt=PROMPT, seed=seed, extra_body=own
        )
        assert alone.choices == answers[seed].choices
