from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.serving.gateway.latencies import Latencies


def test_too_few_tell_nothing():
    latencies = Latencies(least=3)
    for _ in range(2):
        latencies.add(1.0)
        assert latencies.quantile(0.5) is None
    latencies.add(2.0)
    assert latencies.quantile(0.5) == 1.0


@given(st.lists(st.floats(0, 100), min_size=20, max_size=300), st.floats(0.01, 1.0))
def test_the_quantile_is_that_of_the_last(values, share):
    latencies = Latencies(most=50, least=20)
    for value in values:
        latencies.add(value)
    last, found = values[-50:], latencies.quantile(share)
    assert found in last
    assert sum(each <= found for each in last) >= share * len(last)
    assert sum(each < found for each in last) < share * len(last)
