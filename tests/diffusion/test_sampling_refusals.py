"""What the sampler and the strategies refuse."""

import jax
import jax.numpy as jnp
import pytest
from oracle import MASK, L

from mdlm_jax import sample, strategies

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0, at least 1 is needed"),
        ({"steps": 2, "blocks": 3}, "steps is 2, at least 3, one a block, are needed"),
        ({"blocks": 0}, "blocks is 0"),
        ({"key": None}, "neither of key and keys given"),
        ({"keys": jax.random.split(KEY, 2)}, "both of key and keys given"),
        (
            {"key": None, "keys": jax.random.split(KEY, 3)},
            r"keys has shape \(3,\), it must be \(2,",
        ),
        ({"pad_id": 1}, "pad_id is for what follows end_id"),
        ({"end_id": MASK}, "other tokens than the mask, 3"),
    ],
)
def test_bad_input_is_named(oracle, change, message):
    arguments = {"key": KEY, "canvas": jnp.full((2, L), MASK), "steps": 2} | change

    def write():
        return sample(
            oracle.denoiser(), mask_id=MASK, strategy=strategies.exact_count(), **arguments
        )

    for run in (write, lambda: jax.eval_shape(write)):  # while it is traced, too
        with pytest.raises(ValueError, match=message):
            run()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: strategies.confidence(temperature=-1), "temperature is -1, it must be at least 0"),
        (
            lambda: strategies.confidence("luck"),
            "score is 'luck', it must be probability or margin",
        ),
        (lambda: strategies.greedy(grid="sine"), "grid is 'sine', it must be uniform or cosine"),
        (lambda: strategies.exact_count(last="lost"), "last is 'lost', it must be drawn or greedy"),
        (lambda: strategies.threshold(1.2), "tau is 1.2, it must be from 0 to 1"),
        (lambda: strategies.factor(-1), "value is -1, it must be at least 0"),
        (lambda: strategies.entropy_bounded(float("nan")), "gamma is nan, it must be at least 0"),
        (lambda: strategies.remask("caps", 0.1), "kind is 'caps', it must be cap or rescale"),
        (lambda: strategies.remask("cap", 2), "eta is 2, it must be from 0 to 1"),
        (lambda: strategies.remask("loop", 0.1, t_on=0.01), "t_off=0.05, t_on=0.01"),
        (lambda: strategies.path_planning(-0.1), "eta is -0.1, it must be at least 0"),
    ],
)
def test_a_bad_strategy_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
