import json
import time

import pytest

from mdlm_jax.serving.gateway import asked as asking


def asked(body, deadline_s=60.0, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    return asking.asked(
        "/v1/completions", raw, headers, begun=time.monotonic(), deadline_s=deadline_s
    )


def test_the_seed_is_fixed_before_the_first_try():
    given = json.loads(asked({"prompt": "a", "seed": 7}).content)
    assert given == {"prompt": "a", "seed": 7}
    drawn = [json.loads(asked({"prompt": "a", "seed": None}).content)["seed"] for _ in range(20)]
    assert len({*drawn}) > 15 and all(0 <= seed < 2**53 for seed in drawn)
    one = asked({"prompt": "a"})
    assert one.headers_for(None) and json.loads(one.content)["seed"] >= 0


def test_numbers_and_texts_go_on_unchanged():
    body = {"prompt": "Fluß 🍯 \ud83c", "seed": 2**63 - 1, "x": 0.1, "y": 1e-30, "z": [{"a": None}]}
    assert json.loads(asked(body).content) == body


def test_the_key_is_the_headers_else_the_users_else_random():
    def key(body, **headers):
        return asked(body, **headers).headers_for(None)["x-request-key"]

    assert key({"user": "u"}, x_request_key="k") == "k"
    assert key({"user": "u"}) == "u"
    assert key({"user": "ü\n"}) != key({"user": "ü\n"})
    assert key({}) != key({})
    one = asked({})
    assert one.headers_for(None)["x-request-key"] == one.headers_for("k")["x-request-key"]


def test_the_authorization_goes_on_or_is_replaced():
    one = asked({}, authorization="Bearer user")
    assert one.headers_for(None)["authorization"] == "Bearer user"
    assert one.headers_for("own")["authorization"] == "Bearer own"
    assert "authorization" not in asked({}).headers_for(None)
    assert one.caller != asked({}, authorization="Bearer other").caller and not asked({}).caller
    assert "user" not in one.caller


def test_headers_of_the_connection_stay_here():
    given = {"host": "a", "connection": "close", "cookie": "c", "content-length": "3"}
    sent = asking.asked(
        "/", b"{}", {**given, "openai-organization": "o", "x-mine": "m"}, begun=0, deadline_s=1
    ).headers_for(None)
    assert not {*given} & {*sent} and sent["openai-organization"] == "o" and sent["x-mine"] == "m"


def test_the_deadline_is_the_smaller_one_and_what_is_left_of_it_goes_on():
    assert 59 < asked({}).left <= 60
    assert 4 < asked({}, x_request_timeout="5").left <= 5
    assert 59 < asked({}, x_request_timeout="500").left <= 60
    left = float(asked({}, x_request_timeout="5").headers_for(None)["x-request-timeout"])
    assert 4.9 < left <= 5
    late = asking.asked("/", b"{}", {}, begun=time.monotonic() - 3, deadline_s=2)
    assert late.left < 0 and float(late.headers_for(None)["x-request-timeout"]) > 0


def test_an_id_of_the_user_is_kept_if_it_can_stand_in_a_log():
    assert asked({}, x_request_id="abc-1").id == "abc-1"
    assert asked({}, x_request_id='a"b\n').id.startswith("req-")
    assert asked({}, x_request_id="x" * 65).id.startswith("req-")
    one = asked({}, x_request_id="abc-1")
    assert one.headers_for(None)["x-request-id"] == "abc-1"


def test_hops_are_counted_and_bounded():
    assert asked({}).headers_for(None)["x-gateway-hops"] == "1"
    assert asked({}, x_gateway_hops="3").headers_for(None)["x-gateway-hops"] == "4"
    for wrong in ("4", "-1", "x"):
        with pytest.raises(asking.Refused) as told:
            asked({}, x_gateway_hops=wrong)
        assert told.value.answer.status == 508


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON"), (b"{", "no JSON"), (b"\xff", "no JSON"), (b"[1]", "no JSON object"),
        (b'{"temperature": NaN}', "no JSON"), (b"[" * 100_000, "no JSON"),
    ],
)  # fmt: skip
def test_a_body_that_cannot_be_read_is_refused_in_openais_form(body, said):
    with pytest.raises(asking.Refused) as told:
        asked(body)
    assert told.value.answer.status == 400
    error = json.loads(told.value.answer.body)["error"]
    assert said in error["message"] and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("wrong", ["0", "-1", "x", "nan", ""])
def test_a_deadline_must_be_a_number(wrong):
    with pytest.raises(asking.Refused) as told:
        asked({}, x_request_timeout=wrong)
    assert told.value.answer.status == 400
