"""The circuit breaker against a model that is told in a few words: hypothesis plays both."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mdlm_jax.serving.gateway.breaker import CLOSED, HALF_OPEN, OPEN, Breaker, Rules


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def opened(rules=None, clock=None):
    rules, clock = rules or Rules(), clock or Clock()
    breaker = Breaker(rules, clock)
    for _ in range(rules.failures):
        breaker.permit().failed()
    return breaker, clock


def test_failures_open_it_and_time_lets_probes_through():
    breaker, clock = opened()
    assert breaker.state == OPEN and breaker.permit() is None
    assert breaker.opens_in == Rules().open_for
    clock.now += Rules().open_for
    assert breaker.state == HALF_OPEN
    probes = [breaker.permit() for _ in range(3)]
    assert probes[0] and probes[1] and probes[2] is None, "two probes at once"
    probes[0].succeeded()
    assert breaker.state == HALF_OPEN
    probes[1].succeeded()
    assert breaker.state == CLOSED


def test_a_sign_of_life_lets_probes_through_at_once():
    breaker, _ = opened()
    breaker.probe()
    assert breaker.state == HALF_OPEN
    breaker.permit().failed()
    assert breaker.state == OPEN and breaker.opens_in == 10.0
    closed = Breaker(Rules(), Clock())
    closed.probe()
    assert closed.state == CLOSED


def test_a_failed_probe_doubles_the_wait_up_to_the_most():
    breaker, clock = opened()
    waits = []
    for _ in range(6):
        clock.now += breaker.opens_in
        breaker.permit().failed()
        waits.append(breaker.opens_in)
    assert waits == [10.0, 20.0, 40.0, 60.0, 60.0, 60.0]
    clock.now += 60.0
    for _ in range(2):
        breaker.permit().succeeded()
    for _ in range(5):
        breaker.permit().failed()
    assert breaker.opens_in == 5.0, "closed for once, it begins anew"


@pytest.mark.parametrize("pattern", ["bgg", "bbg", "bg"])
def test_a_share_of_failures_opens_it_where_none_are_in_a_row(pattern):
    breaker = Breaker(Rules(failures=5, share=0.5, least=20), Clock())
    bad = 0
    for count, result in enumerate(itertools.islice(itertools.cycle(pattern), 99), 1):
        permit = breaker.permit()
        permit.failed() if result == "b" else permit.succeeded()
        bad += result == "b"
        if breaker.state == OPEN:
            assert count >= 20 and bad >= 0.5 * count
            return
        assert count < 20 or bad < 0.5 * count or result == "g"
    assert pattern == "bgg"


def test_failures_in_a_row_open_it_whatever_was_before():
    breaker = Breaker(Rules(failures=5), Clock())
    for _ in range(1000):
        breaker.permit().succeeded()
    for _ in range(4):
        breaker.permit().failed()
    breaker.permit().succeeded()
    for _ in range(5):
        assert breaker.state == CLOSED
        breaker.permit().failed()
    assert breaker.state == OPEN


def test_failures_longer_ago_than_the_window_are_forgotten():
    clock = Clock()
    breaker = Breaker(Rules(failures=2, window=30.0), clock)
    for _ in range(10):
        breaker.permit().failed()
        assert breaker.state == CLOSED
        clock.now += 32.0


def test_what_was_begun_before_it_opened_is_no_probe():
    clock = Clock()
    breaker = Breaker(Rules(), clock)
    old = [breaker.permit() for _ in range(2)]
    for _ in range(5):
        breaker.permit().failed()
    clock.now += 5.0
    for permit in old:
        permit.succeeded()
    assert breaker.state == HALF_OPEN
    assert breaker.permit() and breaker.permit() and not breaker.permit()


def test_a_stream_that_breaks_after_it_began_counts_as_a_failure_too():
    breaker, clock = opened()
    clock.now += 5.0
    permit = breaker.permit()
    permit.succeeded()
    permit.failed()
    assert breaker.state == OPEN


@pytest.mark.parametrize("settle", ["released", "succeeded", "failed"])
def test_a_place_of_a_probe_comes_back_once(settle):
    breaker, clock = opened(Rules(probes=3))
    clock.now += 5.0
    first, second = breaker.permit(), breaker.permit()
    first.released()
    first.released()
    getattr(first, settle if settle == "released" else "released")()
    assert [breaker.permit() is not None for _ in range(3)] == [True, True, False]
    second.released()


class Machine(RuleBasedStateMachine):
    """Whatever happens: open lets nothing through, half-open a few, and it mends."""

    def __init__(self):
        super().__init__()
        self.rules = Rules(failures=3, window=10.0, open_for=2.0, open_most=7.0, probes=2)
        self.clock = Clock()
        self.breaker = Breaker(self.rules, self.clock)
        self.held = []  # permits, with the state at which they were given

    @rule()
    def ask(self):
        state = self.breaker.state
        permit = self.breaker.permit()
        if state == CLOSED:
            assert permit
        if state == OPEN:
            assert permit is None
        if permit:
            self.held.append(permit)

    @rule(data=st.data(), how=st.sampled_from(["succeeded", "failed", "released", "broke"]))
    def settle(self, data, how):
        if not self.held:
            return
        permit = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        if how == "broke":
            permit.succeeded()
            permit.failed()
        else:
            getattr(permit, how)()

    @rule()
    def probe(self):
        self.breaker.probe()
        assert self.breaker.state != OPEN

    @rule(seconds=st.floats(0.0, 12.0))
    def wait(self, seconds):
        self.clock.now += seconds

    @invariant()
    def waits_are_bounded(self):
        assert 0.0 <= self.breaker.opens_in <= self.rules.open_most
        assert (self.breaker.state == OPEN) == (self.breaker.opens_in > 0)

    @invariant()
    def places_are_bounded(self):
        assert 0 <= self.breaker._probing <= self.rules.probes
        assert self.breaker.has_place or self.breaker.state != CLOSED

    def teardown(self):
        """A region that is well again is asked again, whatever was before."""
        for permit in self.held:
            permit.released()
        self.clock.now += self.rules.open_most
        for _ in range(self.rules.probes):
            permit = self.breaker.permit()
            assert permit, "no place is lost"
            permit.succeeded()
        assert self.breaker.state == CLOSED


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
