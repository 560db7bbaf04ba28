"""What a sample costs: evaluations of the network, positions read out, programs compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_strategy import EVERY
from oracle import MASK, L

from mdlm_jax import Denoiser, Hidden, as_denoiser, sample, strategies

KEY = jax.random.key(0)


def test_rows_that_have_all_ended_cost_nothing_more():
    calls = []

    def logits(tokens, t):
        jax.debug.callback(lambda _: calls.append(1), t)
        return jnp.broadcast_to(jnp.array([-50.0, 50.0, 0.0]), (*tokens.shape, 3))

    tokens = jax.jit(
        lambda key: sample(
            as_denoiser(logits, 2), key, jnp.full((3, 32), 2), mask_id=2, steps=32,
            strategy=strategies.exact_count(), blocks=8, end_id=1,
        )
    )(KEY)  # fmt: skip
    jax.effects_barrier()
    assert np.all(np.asarray(tokens) == 1)
    assert len(calls) == 4  # those of the first block


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [("ancestral", None), ("threshold", 1), ("entropy_bounded", 4)],
)
def test_no_more_evaluations_than_needed(name, evaluations):
    """4 blanks and 50 steps: the network is skipped where nothing is asked, and at the end.

    All tokens are sure, so one step suffices `threshold`; all have entropy 0.69 > 0.5 nats or none.
    """
    calls = []
    sure = name == "threshold"

    def logits(tokens, t):
        jax.debug.callback(lambda _: calls.append(1), t)
        return jnp.broadcast_to(jnp.array([0.0, -50.0 if sure else 0.0, 0.0]), (*tokens.shape, 3))

    _, trace = jax.jit(
        lambda key: sample(
            as_denoiser(logits, 2), key, jnp.full((1, 4), 2), mask_id=2, steps=50,
            strategy=EVERY[name], trace=True,
        )
    )(KEY)  # fmt: skip
    jax.block_until_ready(trace)
    jax.effects_barrier()
    assert len(calls) == trace.evaluations[0]
    if evaluations is None:
        assert len(calls) <= 4
    else:
        assert len(calls) == evaluations


def test_a_cosine_of_more_steps_than_blanks_writes_a_token_a_step():
    denoiser = as_denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)), 4)
    canvas = jnp.full((2, 8), 4).at[1, 3:].set(0)
    _, trace = jax.jit(
        lambda key: sample(
            denoiser, key, canvas, mask_id=4, steps=16, trace=True,
            strategy=strategies.exact_count(grid="cosine"),
        )
    )(KEY)  # fmt: skip
    for row, blanks in zip(trace.step, (8, 3), strict=True):
        assert sorted(row[:blanks].tolist()) == list(range(blanks))


@pytest.mark.parametrize(
    ("name", "readouts"),
    [
        ("exact_count", 16),
        ("confidence", 2 * (8 + 7 + 5 + 3)),
        ("path_planning", 2 * 4 * 8),
    ],
)
def test_only_the_positions_asked_for_are_read_out(name, readouts):
    """2 rows of 8 blanks in 4 steps, in chunks of one: each readout is one position.

    MaskGIT's cosine leaves 7, 5, 3 and 0 of 8 blanks, and reads out all that are left each time;
    path planning reads out what it wrote, too.
    """
    seen = []

    def readout(at, row):
        jax.debug.callback(lambda x: seen.append(len(x)), at)
        return jnp.zeros((len(at), 5))

    denoiser = Denoiser(lambda tokens, t: Hidden(at=jnp.zeros(tokens.shape)), readout)
    tokens = jax.jit(
        lambda key: sample(
            denoiser, key, jnp.full((2, 8), 4), mask_id=4, steps=4, strategy=EVERY[name], chunk=1
        )
    )(KEY)
    jax.block_until_ready(tokens)
    jax.effects_barrier()
    assert sum(seen) == readouts


def test_thresholds_are_not_compiled_in(oracle):
    write = jax.jit(
        lambda tau, key: sample(
            oracle.denoiser(), key, jnp.full((8, L), MASK), mask_id=MASK, steps=L,
            strategy=strategies.threshold(tau), trace=True,
        )[1].evaluations
    )  # fmt: skip
    assert np.all(write(0.0, KEY) == 1)
    assert np.asarray(write(1.0, KEY)).max() == L
    assert write._cache_size() == 1
