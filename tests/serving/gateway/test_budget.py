from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.serving.gateway.budget import Budget

EVENTS = st.lists(
    st.one_of(st.just("request"), st.just("retry"), st.floats(0.0, 3.0)), max_size=200
)


@given(EVENTS, st.sampled_from([0.0, 0.1, 0.5]), st.sampled_from([0.0, 2.0]))
def test_retries_never_exceed_burst_share_and_floor(events, share, per_second):
    now, burst = [5.0], 4.0
    budget = Budget(share, burst, per_second, clock=lambda: now[0])
    requests = retries = 0
    for event in events:
        if event == "request":
            budget.requested()
            requests += 1
        elif event == "retry":
            before = budget.tokens
            allowed = budget.withdraw()
            assert allowed == (before >= 1)
            retries += allowed
        else:
            now[0] += event
        assert 0 <= budget.tokens <= burst
        assert retries <= burst + share * requests + per_second * (now[0] - 5.0) + 1e-6


def test_hedges_leave_what_retries_may_need():
    budget = Budget(0.0, 10.0, 0.0, clock=lambda: 0.0)
    hedges = sum(budget.withdraw(spare=0.5) for _ in range(20))
    assert hedges == 5 and sum(budget.withdraw() for _ in range(20)) == 5


def test_a_share_is_what_is_left_in_the_long_run():
    budget = Budget(0.2, 10.0, 0.0, clock=lambda: 0.0)
    allowed = 0
    for _ in range(1000):
        budget.requested()
        allowed += budget.withdraw()
    assert 200 <= allowed <= 211
