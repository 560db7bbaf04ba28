import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.serving.gateway.sse import Decoder, Event, Malformed

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
EVENTS = st.lists(
    st.one_of(
        st.builds(Event, st.sampled_from(["message", "canvas"]), LINE),
        st.builds(Event, st.just("message"), st.lists(LINE, min_size=2).map("\n".join)),
        st.builds(Event, st.just(""), LINE),
    ),
    max_size=8,
)


@given(EVENTS, st.lists(st.integers(1, 9), min_size=1), st.booleans())
def test_events_come_out_as_they_went_in_however_they_are_cut(events, cuts, windows):
    data = b"".join(event.encoded() for event in events)
    if windows:
        data = data.replace(b"\n", b"\r\n")
    decoder, found, place = Decoder(), [], 0
    while place < len(data):
        size = cuts[place % len(cuts)]
        found += decoder.feed(data[place : place + size])
        place += size
    assert found == events


def test_an_event_without_its_end_is_none():
    decoder = Decoder()
    assert decoder.feed(b"data: 1\n\ndata: 2\n") == [Event("message", "1")]


def test_fields_that_nobody_asked_for_are_dropped():
    assert Decoder().feed(b"id: 3\nretry: 5\ndata:x\nnothing\n\n\n") == [Event("message", "x")]


@pytest.mark.parametrize("data", [b"data: \xff\n\n", b"data: " + b"x" * 200, b"data: x\n" * 30])
def test_what_is_no_event_is_refused(data):
    with pytest.raises(Malformed):
        Decoder(most=100).feed(data)
