"""Texts over HTTP, asked for by OpenAI's client."""

import concurrent.futures
import itertools
import json

import httpx
import numpy as np
import pytest

PROMPT = "the old mill"


def ask(server, prompt=PROMPT, *, model="tiny", seed=5, **fields):
    ours = {"strategy", "steps", "canvases", "top_k", "length", "blocks", "forbid", "end_of_text"}
    extra = {name: fields.pop(name) for name in ours & fields.keys()}
    return server.client.completions.create(
        model=model, prompt=prompt, seed=seed, extra_body=extra, **fields
    )


def streamed(server, *arguments, **fields):
    """The texts of a stream, by choice, and all its events."""
    events = [*ask(server, *arguments, stream=True, **fields)]
    texts = {}
    for event in events:
        for choice in event.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return [texts[index] for index in sorted(texts)], events


def texts(answer):
    return [choice.text for choice in answer.choices]


def test_gaps_are_filled_as_the_library_fills_them(server, tiny):
    prompt = "the [MASK] mill {mask:3} salt"
    answer = ask(server, prompt, n=2, temperature=0.8)
    filled = tiny.fill(prompt, samples=2, seed=5, steps=4, temperature=0.8)
    assert texts(answer) == filled and len({*filled}) == 2
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 2
    assert [choice.index for choice in answer.choices] == [0, 1]
    given = len(tiny.tokenizer.encode("the").ids) + len(tiny.tokenizer.encode(" mill salt").ids)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (given, 8)
    assert usage.evaluations == 8 and usage.total_tokens == given + 8


def test_an_open_end_goes_on_by_so_many_tokens(server, tiny):
    answer = ask(server, max_tokens=7, n=2)
    filled = tiny.fill(PROMPT + "{mask:7}", samples=2, seed=5, steps=4)
    assert [PROMPT + text for text in texts(answer)] == filled
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 14
    assert texts(ask(server, max_tokens=7, n=2, echo=True)) == filled
    by_default = tiny.fill(PROMPT + "{mask:16}", samples=2, seed=5, steps=4)
    assert [PROMPT + text for text in texts(ask(server, n=2))] == by_default
    # Nothing asks for more than a row has where no length was given.
    room = 48 - len(tiny.tokenizer.encode("a" * 40).ids)
    assert ask(server, "a" * 40).usage.completion_tokens == room < 16


def test_a_suffix_makes_a_gap(server, tiny):
    answer = ask(server, suffix=" of salt", max_tokens=5, n=2)
    filled = tiny.fill(PROMPT + "{mask:5} of salt", samples=2, seed=5, steps=4)
    assert [PROMPT + text + " of salt" for text in texts(answer)] == filled
    text, _ = streamed(server, suffix=" of salt", max_tokens=5, n=2)
    assert text == texts(answer)


@pytest.mark.parametrize("strategy", ["exact_count", "threshold(0.5)", "remask(cap, 0.05)"])
@pytest.mark.parametrize("prompt", [PROMPT, "the [MASK] mill {mask:9} salt", ["{mask:20}", "wool"]])
def test_a_stream_is_the_text_to_the_character(server, strategy, prompt):
    fields = {"n": 2, "strategy": strategy, "steps": 6, "temperature": 1.3}
    whole = ask(server, prompt, **fields)
    text, events = streamed(server, prompt, stream_options={"include_usage": True}, **fields)
    assert text == texts(whole)
    *pieces, last = events
    assert last.choices == [] and last.usage.model_dump() == whole.usage.model_dump()
    told = {(event.id, event.seed, event.system_fingerprint) for event in events}
    assert len(told) == 1 and {event.usage for event in pieces} == {None}
    reasons = [choice.finish_reason for event in pieces for choice in event.choices]
    assert sorted(filter(None, reasons)) == sorted(c.finish_reason for c in whole.choices)


def test_prompts_are_written_as_if_each_were_alone(server):
    """To the bit: log-probabilities too. The rows of prompt i are the choices i * n and on."""
    prompts = [PROMPT, "{mask:5} wool", "salt [MASK] honey", "market"]
    together = ask(server, prompts, n=2, logprobs=0)
    assert [choice.index for choice in together.choices] == [*range(8)]
    first = ask(server, prompts[0], n=2, logprobs=0)
    for choice, alone in zip(together.choices[:2], first.choices, strict=True):
        assert choice.model_dump() == alone.model_dump()
    beside = ask(server, [prompts[0], *prompts[:0:-1]], n=2, logprobs=0)
    assert beside.choices[0].model_dump() == first.choices[0].model_dump()


def test_a_seed_is_drawn_and_told(server):
    one, other = (ask(server, seed=None) for _ in range(2))
    assert one.seed != other.seed and texts(one) != texts(other)
    assert texts(ask(server, seed=one.seed)) == texts(one)


@pytest.mark.parametrize("prompt", [PROMPT, "the [MASK] mill {mask:9} salt"])
def test_logprobs_are_those_of_the_written_tokens(server, tiny, prompt):
    answer = ask(server, prompt, logprobs=0, steps=6)
    (choice,) = answer.choices
    told = choice.logprobs
    assert "".join(told.tokens) == choice.text and told.top_logprobs is None
    for offset, token in zip(told.text_offset, told.tokens, strict=True):
        assert choice.text[offset : offset + len(token)] == token
    written = [each for each in told.token_logprobs if each is not None]
    assert len(written) == answer.usage.completion_tokens and max(written) < 0
    if prompt == PROMPT:
        assert len(written) == len(told.tokens)
    *_, last = streamed(server, prompt, logprobs=0, steps=6)[1]
    assert last.choices[0].logprobs.model_dump() == told.model_dump()


def test_a_stop_ends_the_text_before_it(server):
    whole = ask(server, max_tokens=20).choices[0].text
    stop = whole[6:8]
    before = whole[: whole.find(stop)]
    answer = ask(server, max_tokens=20, stop=[stop, "never"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (before, "stop")
    assert answer.usage.completion_tokens <= 20
    assert streamed(server, max_tokens=20, stop=stop)[0] == [before]
    kept = ask(server, max_tokens=20, stop=PROMPT, echo=True)  # of what is written alone
    assert kept.choices[0].text == PROMPT + whole


def test_an_end_of_text_ends_a_text(server, tiny):
    """The separator that the model writes, found with a seed that writes one early."""
    prompt, fields = "{mask:24}", {"steps": 4, "temperature": 1.5, "end_of_text": True}
    for seed in range(99):
        answer = ask(server, prompt, seed=seed, n=2, **fields)
        if answer.usage.completion_tokens < 40:
            break
    assert answer.usage.completion_tokens < 40
    filled = tiny.fill(prompt, samples=2, seed=seed, **fields)
    assert texts(answer) == filled == streamed(server, prompt, seed=seed, n=2, **fields)[0]


def test_canvases_show_what_is_written_anywhere(server):
    """As events of another name, in which a client of OpenAI's finds no choice."""
    fields = {"steps": 6, "strategy": "remask(cap, 0.3)"}
    body = {"model": "tiny", "prompt": "{mask:24}", "seed": 5, "stream": True, "canvases": True}
    with httpx.stream(
        "POST", f"{server.address}/v1/completions", json={**body, **fields}, timeout=30
    ) as response:
        lines = [*response.iter_lines()]
    canvases = [
        json.loads(data.removeprefix("data: "))["canvas"]
        for name, data in itertools.pairwise(lines)
        if name == "event: canvas"
    ]
    assert canvases[-1]["done"] and not any(canvas["done"] for canvas in canvases[:-1])
    evaluations = [canvas["evaluations"] for canvas in canvases]
    assert evaluations == sorted(evaluations)
    whole = "".join(piece for piece, _, _ in canvases[-1]["tokens"])
    text, events = streamed(server, "{mask:24}", canvases=True, **fields)
    assert text == [whole] == texts(ask(server, "{mask:24}", **fields))
    assert [event.object for event in events].count("text_completion.canvas") >= 1
    assert len(canvases[-1]["written"]) == 24


def test_alternatives_are_the_models_own_law_of_a_token_given_the_others(server, tiny):
    prompt = "the old {mask:6} salt"
    *_, last = (
        event
        for event in streamed(server, prompt, canvases=True)[1]
        if event.object.endswith("canvas")
    )
    written = last.canvas["written"]
    body = {"model": "tiny", "prompt": prompt, "written": written, "position": 2, "top": 4}
    told = httpx.post(f"{server.address}/v1/alternatives", json=body, timeout=30).json()
    law = _law(tiny, prompt, written, 2)
    best = np.argsort(-law, kind="stable")[:4]
    assert [each["id"] for each in told["data"]] == best.tolist()
    np.testing.assert_allclose([each["logprob"] for each in told["data"]], law[best], atol=1e-4)
    assert told["chosen"]["id"] == written[2]
    np.testing.assert_allclose(told["chosen"]["logprob"], law[written[2]], atol=1e-4)
    for wrong, message in (
        ({"position": 6}, "position is 6, it must be from 0 to 5"),
        ({"written": written[1:]}, "written has 5 tokens, of this prompt 6 are"),
        ({"written": [10**6, *written[1:]]}, "written must hold tokens from 0 to"),
    ):
        refused = httpx.post(f"{server.address}/v1/alternatives", json=body | wrong)
        assert refused.status_code == 400 and message in refused.json()["error"]["message"]


def _law(tiny, prompt, written, position):
    """Of the token at one of the wanted positions, by the denoiser itself."""
    import jax
    import jax.numpy as jnp

    from mdlm_jax.writing import canvases

    canvas = canvases.canvas([prompt], tiny.tokenizer, 48)
    tokens = canvas.tokens.copy()
    tokens[canvas.fill] = written
    place = np.flatnonzero(canvas.fill[0])[position]
    tokens[0, place] = tiny.mask_id
    rate = jnp.array([(tokens[0] == tiny.mask_id).mean()])
    hidden = tiny.denoiser.encode(jnp.asarray(tokens), rate)
    at = jax.tree.map(lambda x: x[0, place][None], hidden.at)
    row = jax.tree.map(lambda x: x[:1], hidden.row)
    return np.asarray(jax.nn.log_softmax(tiny.denoiser.readout(at, row)[0]))


def test_requests_at_once_are_answered_as_alone(server):
    """To the bit: what many clients ask at a time, of every kind of strategy."""
    strategies = ("exact_count", "threshold(0.5)", "remask(cap, 0.05)")
    asked = [
        {"prompt": f"the {{mask:{size}}} mill", "seed": size, "strategy": strategy, "logprobs": 0}
        for size in (3, 9, 20)
        for strategy in strategies
    ]

    def choices(fields):
        return [choice.model_dump() for choice in ask(server, **fields).choices]

    alone = [choices(fields) for fields in asked]
    with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
        assert [*pool.map(choices, asked)] == alone
        assert [*pool.map(choices, asked[::-1])] == alone[::-1]
