"""Likelihoods of continuations, against a text model that can be enumerated and a real encoder."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import BASE, params_of
from oracle import MASK, PLACES, STRINGS, L, V, make_oracle

from mdlm_jax import as_denoiser, blocks, nelbo, strategies
from mdlm_jax.diffusion import noise
from mdlm_jax.evaluation.bounds import continuations, likelihoods
from mdlm_jax.host import parallel
from mdlm_jax.networks import bert

ORACLE = make_oracle()
START = 4  # in front of the oracle's strings, when they are read from left to right
SALT = 5  # this and the next two say nothing: they tell prompts apart whose answers are the same


def row_of(tokens, hidden):
    """The four tokens of the oracle in a row that begins with salt; masked where hidden."""
    canvas = jnp.where(hidden | (tokens > MASK), MASK, tokens)
    canvas = jnp.pad(canvas, ((0, 0), (0, L)), constant_values=MASK)  # where the row ends before
    begin = jnp.sum(tokens >= SALT, axis=1)
    return begin, jax.vmap(lambda row, i: jax.lax.dynamic_slice(row, (i,), (L,)))(canvas, begin)


def of_oracle(params, batch):
    """The oracle's true conditionals; what is invisible is unknown to it."""
    with np.errstate(divide="ignore"):
        table = jnp.asarray(np.log(ORACLE.conditionals), jnp.float32)

    def logits(tokens, t):
        begin, canvas = row_of(tokens, ~batch["valid"])
        at = jnp.pad(table[canvas @ jnp.asarray(PLACES)], ((0, 0), (0, 0), (0, 1)))
        rows, width = tokens.shape
        out = jnp.zeros((rows, width + L, V + 1))
        put = jax.vmap(lambda row, four, i: jax.lax.dynamic_update_slice(row, four, (i, 0)))
        return put(out, at, begin)[:, :width]

    return as_denoiser(logits, MASK)


def of_oracle_from_left_to_right(params, batch):
    """Sees `[start, x_1, ..., x_i]` at position i, and predicts the next."""
    table = jnp.asarray(np.log(np.maximum(ORACLE.conditionals, 1e-30)), jnp.float32)

    def logits(tokens, t):
        def at(i):
            known = jnp.arange(L) < i
            canvas = jnp.where(known, tokens[:, 1 : L + 1], MASK)
            return table[canvas @ jnp.asarray(PLACES), jnp.minimum(i, L - 1)]

        return jnp.stack([at(i) for i in range(tokens.shape[1])], axis=1)

    return as_denoiser(logits)


def score(pairs, denoiser_of=of_oracle, params=None, **options):
    defaults = {"mask_id": MASK, "max_length": 16, "draws": 8, "seed": 0, "batch_size": 64}
    defaults |= {"time_conditioning": False}
    return continuations.log_likelihoods(denoiser_of, params, pairs, **(defaults | options))


def true_nats(prompt, continuation):
    def total(tokens):
        return ORACLE.joint[np.all(STRINGS[:, : len(tokens)] == tokens, axis=1)].sum()

    with np.errstate(divide="ignore"):
        return -np.log(total([*prompt, *continuation]) / total(prompt))


def possible(count):
    """Strings of `count` tokens that the oracle can write."""
    return [s for s in itertools.product(range(V), repeat=count) if np.isfinite(true_nats((), s))]


def salted(prompt, number):
    return (*(SALT + number // 3**i % 3 for i in range(8)), *prompt)


@pytest.mark.parametrize(("width", "draws"), [(2, 2), (3, 6), (4, 8)])
def test_true_conditionals_give_the_true_likelihood_and_an_honest_error(width, draws):
    """Independent estimates of one number, each under a prompt of its own (alarm: 6e-5 a width)."""
    likely = STRINGS[np.argmax(ORACLE.joint)]
    prompt, continuation = likely[: L - width], likely[L - width :]
    pairs = [(salted(prompt, i), continuation) for i in range(3000)]
    scored = score(pairs, draws=draws, batch_size=1000)
    wanted = true_nats(prompt, continuation)
    assert abs(scored.nats.mean() - wanted) < 4 * scored.nats.std(ddof=1) / np.sqrt(3000)
    assert scored.nats.std() > 0.01  # or nothing was estimated
    assert np.mean(scored.error**2) == pytest.approx(scored.nats.var(ddof=1), rel=0.15)


def test_few_tokens_are_exact_with_or_without_a_prompt():
    """Of any number that has no more sets of masks than there are draws."""
    pairs = [
        (string[:first], string[first:last])
        for string in possible(L)[::7]
        for first, last in itertools.combinations_with_replacement(range(L + 1), 2)
    ]
    scored = score(pairs, draws=15)
    np.testing.assert_allclose(scored.nats, [true_nats(*pair) for pair in pairs], rtol=1e-5)
    assert not scored.error.any() and not scored.cut.any() and scored.greedy is None


def test_greedy_is_what_brute_force_fills():
    prompts = [*possible(0), *possible(1), *possible(2)]
    pairs = [
        (prompt, continuation)
        for prompt in prompts
        for continuation in itertools.product(range(V), repeat=L - len(prompt))
    ]
    scored = score(pairs, draws=2, greedy=True)
    expected = [continuation == fill_greedily(prompt) for prompt, continuation in pairs]
    assert sum(expected) == len(prompts)
    assert scored.greedy.tolist() == expected


def fill_greedily(prompt):
    canvas = np.array([*prompt, *[MASK] * (L - len(prompt))])
    while (blank := np.flatnonzero(canvas == MASK)).size:
        given = ORACLE.conditionals[canvas @ PLACES][blank]
        best = np.argmax(given.max(axis=1))
        canvas[blank[best]] = given[best].argmax()
    return tuple(canvas[len(prompt) :])


def test_a_causal_model_is_exact_and_greedy_from_left_to_right():
    pairs = [(string[:i], string[i:]) for string in possible(L)[::5] for i in range(L + 1)]
    options = {"denoiser_of": of_oracle_from_left_to_right, "start_id": START, "greedy": True}
    scored = score(pairs, **options)
    np.testing.assert_allclose(scored.nats, [true_nats(*pair) for pair in pairs], rtol=1e-4)
    assert not scored.error.any()

    def greedy(prompt, continuation):
        canvas = np.array([*prompt, *[MASK] * (L - len(prompt))])
        for i in range(len(prompt), L):
            canvas[i] = ORACLE.conditionals[canvas @ PLACES][i].argmax()
        return tuple(canvas[len(prompt) :]) == tuple(continuation)

    expected = [greedy(*pair) for pair in pairs]
    assert scored.greedy.tolist() == expected
    assert len(pairs) / (L + 1) < sum(expected) < len(pairs)  # not the empty ones alone


def of_places(params, batch):
    """A masked token costs by its place alone: what is masked where is told by the sum."""
    del params, batch
    place = jnp.arange(40.0)
    return as_denoiser(
        lambda tokens, t: (
            place[: tokens.shape[1], None] * jax.nn.one_hot(jnp.zeros_like(tokens), V + 1)
        ),
        MASK,
    )


def test_candidates_of_one_prompt_are_masked_alike_and_other_prompts_are_not():
    pairs = [((0, 1), (1, 2, 1)), ((0, 1), (2, 2, 2)), ((0, 2), (1, 2, 1)), ((), (1, 2, 1, 2))]
    pairs += [((), (1, 2, 2, 2))]
    nats = score(pairs, of_places, draws=2).nats
    assert nats[0] == nats[1] != nats[2]
    assert nats[3] != nats[4]  # without a prompt they are texts, not candidates
    other = score(pairs, of_places, draws=2, seed=1).nats
    assert np.sum(nats != other) >= 3


def test_order_batches_and_a_mesh_change_nothing():
    draw = np.random.default_rng(0)
    cuts = draw.integers(0, L + 1, 30)
    strings = [possible(L)[i] for i in draw.integers(0, len(possible(L)), 30)]
    pairs = [
        (salted(s[:cut], i), s[cut:]) for i, (s, cut) in enumerate(zip(strings, cuts, strict=True))
    ]
    scored = score(pairs)
    order = draw.permutation(len(pairs))
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    again = score([pairs[i] for i in order], batch_size=7, mesh=mesh)
    np.testing.assert_allclose(again.nats, scored.nats[order], rtol=1e-5)
    np.testing.assert_allclose(again.error, scored.error[order], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_the_encoder_sees_the_row_and_no_padding():
    """Each row alone and at its own length, of a prompt that fits and one that was cut."""
    config = dataclasses.replace(BASE, max_length=40, layers=1, time_conditioning=True)
    params = params_of(config)
    draw = np.random.default_rng(0)
    sizes = ((3, 4), (9, 1), (1, 0), (50, 6))
    pairs = [tuple(draw.integers(4, 13, size).tolist() for size in row) for row in sizes]
    options = {"max_length": 40, "batch_size": 2, "time_conditioning": True}
    scored = score(pairs, likelihoods.denoiser_of(config), params, **options)
    assert scored.cut.tolist() == [0, 0, 0, 16]
    assert (scored.error > 0).tolist() == [True, True, False, True]  # the time is drawn, too
    for i in (0, 3):
        prompt, continuation = pairs[i]
        row = jnp.array([[*prompt, *continuation][-40:]], jnp.int32)
        alone = nelbo(
            bert.denoiser(params, config),
            noise.derive(noise.seed_key(0), "evaluation"),
            row,
            mask_id=MASK,
            draws=8,
            maskable=jnp.arange(row.shape[1])[None] >= row.shape[1] - len(continuation),
            rows=jnp.array([continuations._number(prompt)]),
        )
        assert scored.nats[i] == pytest.approx(float(alone.nats[0]), rel=2e-5)
        assert scored.error[i] == pytest.approx(float(jnp.sqrt(alone.mc_variance[0])), rel=1e-3)


@pytest.mark.slow
def test_a_model_of_blocks_fills_greedily_with_masks_behind_the_text():
    """What follows in the last block is unknown, as in training; padding would say that it ends."""
    config = dataclasses.replace(BASE, max_length=16, dropout=0.0)
    params, size = jax.tree.map(lambda x: 10 * x, params_of(config)), 8
    of_batch = likelihoods.block_denoiser_of(config, size)
    prompts = np.random.default_rng(3).integers(4, config.vocab_size, (12, 3))

    @jax.jit
    def filled(params, behind):
        canvas = jnp.full((len(prompts), 16), behind).at[:, :3].set(prompts)
        wanted = jnp.broadcast_to((jnp.arange(16) >= 3) & (jnp.arange(16) < 6), canvas.shape)
        canvas = jnp.where(wanted, config.mask_id, canvas).astype(jnp.int32)
        return blocks.sample(
            of_batch(params, {}), jax.random.key(0), canvas, mask_id=config.mask_id, steps=size,
            strategy=strategies.greedy(), fill=wanted,
        )[:, 3:6]  # fmt: skip

    unknown, padded = filled(params, config.mask_id), filled(params, 0)
    differ = np.any(unknown != padded, axis=1)
    assert differ.any()

    def greedy(written):
        pairs = [(p.tolist(), w.tolist()) for p, w in zip(prompts, written, strict=True)]
        return score(
            pairs, of_batch, params, draws=2, max_length=16, mask_id=config.mask_id,
            greedy=True, block_size=size,
        ).greedy  # fmt: skip

    assert greedy(np.asarray(unknown)).all()
    np.testing.assert_array_equal(greedy(np.asarray(padded)), ~differ)


def test_a_prompt_that_does_not_fit_loses_its_start():
    prompts = [(SALT,) * 20 + (1, 2), (SALT,) * 13 + (1, 2), (SALT, 1, 2)]
    scored = score([(prompt, (0,)) for prompt in prompts])
    assert scored.cut.tolist() == [7, 0, 0]
    np.testing.assert_allclose(scored.nats, true_nats((1, 2), (0,)), rtol=1e-5)


@pytest.mark.parametrize(
    ("pairs", "options", "told"),
    [
        ([((), (0,)), ((1,), (0,) * 17)], {}, "continuation 1 has 17 tokens, a row has 16"),
        ([((MASK,), (0, MASK))], {}, r"continuation 0 holds the mask \(3\)"),
        ([((), (0,))], {"draws": 1}, "draws is 1, at least 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(pairs, options, told):
    with pytest.raises(ValueError, match=told):
        score(pairs, **options)


def test_a_mask_in_a_prompt_is_a_word_that_nobody_knows():
    """Given nothing of the first token, the second is as likely as it is by itself."""
    second = [ORACLE.joint[STRINGS[:, 1] == token].sum() for token in range(V)]
    scored = score([((MASK,), (token,)) for token in range(V)])
    np.testing.assert_allclose(scored.nats, -np.log(second), rtol=1e-5)


def test_no_pairs_are_no_work():
    assert len(score([]).nats) == 0
