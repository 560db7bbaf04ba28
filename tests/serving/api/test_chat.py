"""Conversations over HTTP, with models of pairs."""

import httpx
import openai
import pytest

from mdlm_jax import data

USER = {"role": "user", "content": "where is the mill?"}


def chat(server, *messages, model="talk", seed=5, **fields):
    return server.client.chat.completions.create(
        model=model, messages=[*messages] or [USER], seed=seed, **fields
    )


def test_a_conversation_is_answered_as_the_library_answers_it(server, models):
    talk = [{"role": "system", "content": "be short"}, USER]
    answer = chat(server, *talk, n=2)
    assert [choice.message.content for choice in answer.choices] == models["talk"].answer(
        talk, samples=2, seed=5, steps=4
    )
    assert {choice.message.role for choice in answer.choices} == {"assistant"}
    template = data.ChatTemplate().prompt(talk, "")
    given = len(models["talk"].tokenizer.encode(template).ids) + 1  # and the separator
    assert answer.usage.prompt_tokens == given
    assert answer.object == "chat.completion" and answer.choices[0].finish_reason in (
        "stop",
        "length",
    )


def test_a_model_of_prompts_and_responses_answers_one_message_of_the_user(server, models):
    answer = chat(server, model="pairs", n=2)
    expected = models["pairs"].answer(USER["content"], samples=2, seed=5, steps=4)
    assert [choice.message.content for choice in answer.choices] == expected
    by_text = server.client.completions.create(model="pairs", prompt=USER["content"], n=2, seed=5)
    assert [choice.text for choice in by_text.choices] == expected
    with pytest.raises(openai.BadRequestError, match="has messages: they are for runs that were"):
        chat(server, {"role": "system", "content": "be short"}, USER, model="pairs")


@pytest.mark.parametrize("model", ["talk", "pairs"])
def test_what_is_spelt_like_a_gap_is_text(server, models, model):
    """Nothing in it is filled: it is read letter by letter."""
    content = "[MASK] {mask:3}<mask>[SEP]"
    answer = chat(server, {"role": "user", "content": content}, model=model)
    tokenizer = models[model].tokenizer
    plain = data.encode_documents(tokenizer, [content])
    size = len(next(iter(plain)))
    assert size > len(content) // 2
    framing = 0
    if model == "talk":
        written = data.ChatTemplate().prompt([{"role": "user", "content": content}], "")
        framing = len(next(iter(data.encode_documents(tokenizer, [written])))) - size
    assert answer.usage.prompt_tokens == size + framing
    assert content not in answer.choices[0].message.content


def test_parts_of_a_message_are_one_text(server):
    parts = [{"type": "text", "text": "where is "}, {"type": "text", "text": "the mill?"}]
    split = chat(server, {"role": "user", "content": parts})
    assert split.choices[0].message.content == chat(server).choices[0].message.content


def test_a_stream_is_the_answer_to_the_character(server):
    whole = chat(server, n=2, logprobs=True)
    texts, last = {}, {}
    events = [*chat(server, n=2, logprobs=True, stream=True)]
    for event in events:
        assert event.object == "chat.completion.chunk"
        for choice in event.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.delta.content
            last[choice.index] = choice
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert last[choice.index].finish_reason == choice.finish_reason
        assert last[choice.index].logprobs.content == choice.logprobs.content
        told = choice.logprobs.content
        assert "".join(token.token for token in told) == choice.message.content
        assert all(bytes(token.bytes).decode() == token.token for token in told)


def test_an_answer_has_at_most_so_many_tokens(server):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = chat(server, logprobs=True, **{name: 3})
        assert len(answer.choices[0].logprobs.content) <= 3
        assert answer.usage.completion_tokens <= 3
    ends = {chat(server, seed=seed, max_tokens=1).choices[0].finish_reason for seed in range(3)}
    assert "length" in ends


def test_what_is_no_conversation_is_refused(server):
    refused = {
        "model tiny was not trained on pairs of a prompt": ([USER], {"model": "tiny"}),
        "the last message is the assistant's": ([{**USER, "role": "assistant"}], {}),
        "messages must have at least 1 item": ([], {}),
        'unknown field "messages.0.name"': ([{**USER, "name": "x"}], {}),
        "messages.0.content must be a valid string": ([{"role": "user", "content": 5}], {}),
        "messages.0.role is required": ([{"content": "x"}], {}),
        "messages.0.content.0.type must be 'text'": (
            [{"role": "user", "content": [{"type": "image_url", "text": ""}]}],
            {},
        ),
        "top_logprobs must be less than or equal to 0": ([USER], {"top_logprobs": 2}),
        'unknown field "tools"': ([USER], {"tools": []}),
        "max_tokens is the former name": ([USER], {"max_tokens": 1, "max_completion_tokens": 1}),
    }
    for message, (messages, fields) in refused.items():
        body = {"model": "talk", "messages": messages, **fields}
        response = httpx.post(f"{server.address}/v1/chat/completions", json=body)
        told = response.json()["error"]
        assert response.status_code == 400 and message in told["message"], told
        assert told["type"] == "invalid_request_error" and "\n" not in told["message"]
