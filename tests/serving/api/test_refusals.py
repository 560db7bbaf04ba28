"""What a server refuses, in OpenAI's form and in one line."""

import httpx
import openai
import pytest
import tiny_server

from mdlm_jax.serving.api import guards
from mdlm_jax.serving.api.limits import Limits

BODY = {"model": "tiny", "prompt": "the old", "seed": 5}

REFUSED = {
    "prompt must be a valid string, got 7": {"prompt": 7},
    "prompt.1 must be a valid string, got 3": {"prompt": ["a", 3]},
    "prompt must have at least 1 item": {"prompt": []},
    "prompt 'a [MASK": {"prompt": "a [MASK] " * 40},
    "max_tokens is 46: with this prompt a row of model tiny has room for": {"max_tokens": 46},
    "max_tokens is 999": {"max_tokens": 999},
    "max_tokens must be greater than or equal to 1": {"max_tokens": 0},
    "max_tokens is for a prompt that is written on": {"prompt": "[MASK]", "max_tokens": 3},
    "stop is for a prompt that is written on": {"prompt": "[MASK]", "stop": "a"},
    "suffix: a suffix makes the gap": {"suffix": " [MASK]"},
    "prompt: a suffix makes the gap": {"prompt": "{mask:3}", "suffix": " a"},
    "stop must have at most 4 items": {"stop": ["a"] * 5},
    "stop must have at least 1 character": {"stop": ""},
    "temperature must be a valid number, got": {"temperature": "hot"},
    "temperature: value is -1.0, it must be at least 0": {"temperature": -1},
    "top_p: p is 1.5": {"top_p": 1.5},
    "top_k must be greater than or equal to 1": {"top_k": 0},
    "n must be greater than or equal to 1": {"n": 0},
    "n: 33 answers to 2 prompts, at most 64 rows": {"n": 33, "prompt": ["a", "b"]},
    "best_of is 3: it must be n": {"best_of": 3},
    "seed must be greater than or equal to 0": {"seed": -1},
    "logprobs must be 0, got 5": {"logprobs": 5},
    "frequency_penalty must be less than or equal to 0": {"frequency_penalty": 0.5},
    'unknown field "stepz" (do you mean steps?)': {"stepz": 4},
    'unknown field "logit_bias"': {"logit_bias": {}},
    "steps must be greater than or equal to 1": {"steps": 0},
    "steps is 1, blocks 2": {"steps": 1, "blocks": 2},
    "strategy 'greedy' is of a kind that this server does not offer: it has exact_count": {
        "strategy": "greedy"
    },
    "strategy 'fast' must be one of": {"strategy": "fast"},
    "threshold: tau is 7": {"strategy": "threshold(7)"},
    "length is 32: this server has rows of 48": {"length": 32},
    "forbid: 'zzz' is not one token": {"forbid": ["zzz"]},
    "a label is for models with classes": {"label": "salt"},
    "guidance is for models with classes": {"guidance": 2.0},
    "timeout is 999: at most 120 seconds": {"timeout": 999},
    "canvases are for a stream": {"canvases": True},
    "stream_options are for a stream": {"stream_options": {"include_usage": True}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_request_is_refused_in_one_line(server, message):
    response = httpx.post(f"{server.address}/v1/completions", json=BODY | REFUSED[message])
    told = response.json()["error"]
    assert response.status_code == 400 and told["message"].startswith(message), told
    assert told.keys() == {"message", "type", "param", "code"}
    assert told["type"] == "invalid_request_error" and "\n" not in told["message"]
    (field, *_) = [*REFUSED[message]]
    if field not in ("blocks", "strategy", "label", "best_of") and "prompt" not in message:
        assert told["param"] == field


def test_what_is_neutral_is_taken(server):
    """Clients send fields of OpenAI's API at their defaults."""
    plain = server.client.completions.create(**BODY)
    neutral = server.client.completions.create(
        **BODY, n=1, best_of=1, presence_penalty=0, frequency_penalty=0.0, top_p=1, temperature=1,
        stream=False, suffix=None, stop=None, user="somebody", extra_body={"steps": None},
    )  # fmt: skip
    assert neutral.choices == plain.choices


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the body is no JSON object with fields"),
        (b"[]", "the body is no JSON object with fields"),
        (b"7", "the body is no JSON object with fields"),
        (b"", "the body is no JSON object with fields"),
        (b"[" * 99_999, "There was an error parsing the body"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "prompt holds '\\ud800', half of a"),
        (b'{"model": "tiny", "temperature": NaN}', "temperature must be a finite number"),
        (b'{"model": "tiny", "seed": 1' + b"0" * 99 + b"}", "seed must be"),
    ],
)
def test_what_is_no_request_is_refused(server, content, message):
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.address}/v1/completions", content=content, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message), response.text


def test_unknown_models_and_places_are_not_found(server):
    with pytest.raises(openai.NotFoundError, match=r"unknown model \\?\"tinny\\?\" \(do you mean"):
        server.client.completions.create(model="tinny", prompt="a")
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("tinny")
    for path in ("/v1/embeddings", "/nothing"):
        response = httpx.get(f"{server.address}{path}")
        assert response.status_code == 404 and response.json()["error"]["message"] == "Not Found"
    response = httpx.get(f"{server.address}/v1/completions")
    assert response.status_code == 405 and "error" in response.json()


def test_models_tell_what_may_be_asked(server):
    listed = {model.id: model for model in server.client.models.list()}
    assert [*listed] == ["tiny", "pairs", "talk"]
    tiny = server.client.models.retrieve("tiny")
    assert tiny == listed["tiny"]
    assert (tiny.lengths, tiny.answers, tiny.strategy, tiny.steps) == (
        [48], False, "exact_count", 4,
    )  # fmt: skip
    assert tiny.strategies == ["exact_count", "threshold(0.9)", "remask(cap, 0.1)"]
    fingerprint = server.client.completions.create(**BODY).system_fingerprint
    assert tiny.fingerprints == {"48": fingerprint}


def test_a_body_that_is_too_large_is_refused_before_it_is_read(tiny):
    with tiny_server.running({"tiny": tiny}, limits=Limits(body=200, rows=2)) as server:
        url = f"{server.address}/v1/completions"
        large = b'{"model": "tiny", "prompt": "' + b"a" * 300 + b'"}'
        headers = {"Content-Type": "application/json"}
        for content in (large, iter([large[:100], large[100:]])):  # and without its length
            response = httpx.post(url, content=content, headers=headers)
            assert response.status_code == 413
            assert response.json()["error"]["message"] == "the body has more than 200 bytes"
        assert httpx.post(url, json=BODY).status_code == 200
        assert httpx.post(url, json=BODY | {"n": 3}).status_code == 400


def test_a_key_is_asked_for_and_never_told(tiny, tmp_path):
    file = tmp_path / "keys"
    file.write_text("# of the team\nfirst-key\n\n  second-key \n")
    keys = guards.read_keys(str(file))
    with tiny_server.running({"tiny": tiny}, keys=keys, api_key="second-key") as server:
        assert server.client.completions.create(**BODY).choices
        for headers in ({}, {"Authorization": "Bearer first"}, {"Authorization": "Basic first-key"},
                        {"Authorization": "Bearer é".encode()}):  # fmt: skip
            for path in ("/v1/models", "/v1/completions"):
                response = httpx.get(f"{server.address}{path}", headers=headers)
                assert response.status_code == 401
                told = response.json()["error"]
                assert told["code"] == "invalid_api_key" and "-key" not in told["message"]
        for path in ("/", "/page/page.js", "/healthz", "/readyz"):
            assert httpx.get(f"{server.address}{path}").status_code == 200
        assert "-key" not in str(server.told)


def test_a_file_of_keys_must_hold_some(tmp_path):
    file = tmp_path / "keys"
    for content, message in (("\n# none\n", "holds no key"), ("a\nb c\n", "line 2: a key has no")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            guards.read_keys(str(file))


def test_other_pages_may_ask_where_they_are_named(tiny, server):
    asked = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    with tiny_server.running(
        {"tiny": tiny}, cors=["https://example.org"], keys=[b"key"], api_key="key"
    ) as named:
        before = httpx.options(f"{named.address}/v1/completions", headers=asked)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == "https://example.org"
        refused = httpx.get(f"{named.address}/v1/models", headers=asked)
        assert refused.status_code == 401  # which the other page may read
        assert refused.headers["access-control-allow-origin"] == "https://example.org"
        other = httpx.get(f"{named.address}/healthz", headers={"Origin": "https://other.org"})
        assert "access-control-allow-origin" not in other.headers
    nobody = httpx.get(f"{server.address}/healthz", headers={"Origin": "https://example.org"})
    assert "access-control-allow-origin" not in nobody.headers


def test_the_log_tells_of_every_request_but_its_text(server):
    before = len(server.told)
    server.client.completions.create(model="tiny", prompt="secret words", seed=1, n=2)
    [*server.client.completions.create(model="tiny", prompt="secret words", stream=True)]
    with pytest.raises(openai.BadRequestError):
        server.client.completions.create(model="tiny", prompt="secret [MASK]", stop="words")
    tiny_server.wait_until(lambda: len(server.told) == before + 3)
    whole, stream, refused = server.told[before:]
    assert (whole["status"], whole["rows"], whole["model"]) == (200, 2, "tiny")
    assert whole["answer"].startswith("cmpl-") and whole["completion_tokens"] == 32
    assert stream["first_ms"] <= stream["ms"] and stream["evaluations"] == 4
    assert refused["status"] == 400 and refused["path"] == "/v1/completions"
    assert not any(word in str(server.told) for word in ("secret", "words"))
    httpx.get(f"{server.address}/no%0Astatus=200")
    tiny_server.wait_until(lambda: len(server.told) == before + 4)
    assert server.told[-1]["path"] == "/no%0Astatus=200"
