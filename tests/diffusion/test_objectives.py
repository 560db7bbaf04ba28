import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import MASK, STRINGS, L

from mdlm_jax import (
    as_denoiser,
    at_rate,
    corrupt,
    corrupted_loss,
    diffusion_loss,
    mlm_loss,
    nelbo,
    sample,
    schedules,
    strategies,
    transforms,
)
from mdlm_jax.diffusion.reading import slots

KEY = jax.random.key(0)
ALL = {
    "linear": schedules.linear(),
    "cosine": schedules.cosine(),
    "square": schedules.polynomial(2),
}


def possible(oracle):
    return [(s, p) for s, p in zip(STRINGS, oracle.joint, strict=True) if p > 0]


def test_exact_count_nelbo_of_every_string_is_its_negative_log_probability(oracle):
    for string, p in possible(oracle):
        assert oracle.exact_count_nelbo(string) == pytest.approx(-np.log(p), rel=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_schedule_nelbo_of_every_string_is_its_negative_log_probability(oracle, name):
    for string, p in possible(oracle)[::7]:
        assert oracle.schedule_nelbo(string, ALL[name]) == pytest.approx(-np.log(p), rel=1e-5)


def row_losses(denoiser, string, rows, seed=0, **options):
    """The loss of each of many rows of one string, each row drawn on its own: `f32[rows]`."""
    tokens = jnp.broadcast_to(jnp.asarray(string), (1, L))

    @jax.jit
    def run(keys):
        def one(key):
            return diffusion_loss(denoiser, key, tokens, mask_id=MASK, **options)[0]

        return jax.vmap(one)(keys) * L

    return np.asarray(run(jax.random.split(jax.random.key(seed), rows)), np.float64)


# Bernoulli with a linear schedule is unbiased too, but its variance is infinite: the second moment
# weight(t)^2 E[masked^2] goes like 1 / t, and "4 standard errors" means nothing there. With
# polynomial(2) the weight is 2 / t and the rate t^2: the second moment stays bounded.
ESTIMATORS = {
    "exact": {},
    "exact, cosine time": {"schedule": schedules.cosine()},
    "bernoulli, square": {"corruption": "bernoulli", "schedule": schedules.polynomial(2)},
}


@pytest.mark.parametrize("drift", [0.0, 0.5])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_monte_carlo_loss_agrees_with_enumeration(oracle, name, drift):
    string, _ = max(possible(oracle), key=lambda pair: pair[1] * (pair[0][0] != pair[0][1]))
    options = ESTIMATORS[name]
    losses = row_losses(oracle.denoiser(drift), string, 20000, **options)
    expected = oracle.schedule_nelbo(string, options.get("schedule", ALL["linear"]), drift)
    error = losses.std(ddof=1) / np.sqrt(len(losses))
    assert error > 0
    assert abs(losses.mean() - expected) < 4 * error  # false alarm: 6e-5


@pytest.mark.parametrize(("max_rate", "most"), [(0.1, 1), (0.5, 2), (0.51, 3), (1.0, 4)])
def test_a_bound_on_the_rate_averages_the_integrand_below_it(oracle, max_rate, most):
    string, _ = max(possible(oracle), key=lambda pair: pair[1] * (pair[0][0] != pair[0][1]))
    losses = row_losses(oracle.denoiser(), string, 20000, max_rate=jnp.float32(max_rate))
    error = losses.std(ddof=1) / np.sqrt(len(losses))
    assert abs(losses.mean() - oracle.exact_count_nelbo(string, most)) < 4 * error  # 6e-5
    others = [oracle.exact_count_nelbo(string, k) for k in range(1, L + 1) if k != most]
    assert np.abs(losses.mean() - others).min() > 8 * error  # so it is this bound


def test_exact_counts_have_the_smaller_variance(oracle):
    string = STRINGS[np.argmax(oracle.joint)]
    exact = row_losses(oracle.denoiser(), string, 20000)
    bernoulli = row_losses(oracle.denoiser(), string, 20000, **ESTIMATORS["bernoulli, square"])
    assert exact.var() < 0.8 * bernoulli.var()


def table_denoiser(seed=0, width=6, vocab=11):
    """A small differentiable denoiser whose logits depend on every token and on t."""
    k1, k2, k3 = jax.random.split(jax.random.key(seed), 3)
    parameters = {
        "embed": jax.random.normal(k1, (vocab, 8)),
        "mix": jax.random.normal(k2, (width, width)) / 3,
        "out": jax.random.normal(k3, (8, vocab)),
    }

    def build(p, mask_id=vocab - 1):
        def logits(tokens, t):
            hidden = jnp.einsum("lm,bmd->bld", p["mix"], p["embed"][tokens])
            return jnp.tanh(hidden + t[:, None, None]) @ p["out"]

        return as_denoiser(logits, mask_id)

    return parameters, build


TOKENS = jax.random.randint(jax.random.key(5), (8, 6), 0, 10)


def plain_loss(build, parameters, corrupted, tokens, total):
    """The same loss from full logits, one plain formula."""
    logits = build(parameters).readout(
        build(parameters).encode(corrupted.canvas, corrupted.t).at, ()
    )
    logits = logits.reshape(*tokens.shape, -1)
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]
    masked = corrupted.canvas == 10
    weight = (masked.sum(axis=1) + (tokens.shape[1] - masked.sum(axis=1))) / masked.sum(axis=1)
    return jnp.sum(jnp.where(masked, nats, 0).sum(axis=1) * weight) / total


@pytest.mark.parametrize("logits_at_a_time", [2**27, 100])
def test_gathered_and_chunked_loss_equals_the_plain_formula(monkeypatch, logits_at_a_time):
    monkeypatch.setattr(slots, "_LOGITS", logits_at_a_time)
    parameters, build = table_denoiser()
    corrupted = jax.jit(lambda: corrupt(KEY, TOKENS, mask_id=10))()

    def fast(p):
        return corrupted_loss(build(p), corrupted, mask_id=10)[0]

    value, gradient = jax.jit(jax.value_and_grad(fast))(parameters)
    plain, plain_gradient = jax.jit(
        jax.value_and_grad(lambda p: plain_loss(build, p, corrupted, TOKENS, TOKENS.size))
    )(parameters)
    np.testing.assert_allclose(value, plain, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, plain_gradient)


@pytest.mark.slow
def test_splitting_a_batch_changes_nothing():
    parameters, build = table_denoiser()
    maskable = jnp.arange(6) < jnp.array([6, 3, 4, 6, 5, 1, 2, 6])[:, None]

    @jax.jit
    def of_rows(tokens, maskable, rows):
        return diffusion_loss(
            build(parameters), KEY, tokens, mask_id=10, maskable=maskable, rows=rows,
            paired=len(rows) % 2 == 0,
        )  # fmt: skip

    whole, aux = of_rows(TOKENS, maskable, jnp.arange(8))

    # Microbatches of one corruption: the losses and the aux add up.
    corrupted = corrupt(KEY, TOKENS, mask_id=10, maskable=maskable)
    halves = [
        corrupted_loss(
            build(parameters), jax.tree.map(lambda x, i=i: jnp.split(x, 2)[i], corrupted)
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(sum(loss for loss, _ in halves), whole, rtol=1e-6)
    added = jax.tree.map(jnp.add, halves[0][1], halves[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), added, aux)

    # Single rows, each told its number: means weighted by their maskable tokens.
    total = 0.0
    for row in range(8):
        one = slice(row, row + 1)
        loss, _ = of_rows(TOKENS[one], maskable[one], jnp.array([row]))
        total += loss * maskable[one].sum()
    np.testing.assert_allclose(total / maskable.sum(), whole, rtol=1e-5)


def test_mlm_is_the_integrand_at_its_rate(oracle):
    """With all selected tokens masked, at k of L: the mean cross-entropy S_k / k."""
    string = STRINGS[np.argmax(oracle.joint)]
    tokens = jnp.broadcast_to(jnp.asarray(string), (1, L))
    for rate, k in ((0.15, 1), (0.5, 2), (1.0, 4)):

        @jax.jit
        @jax.vmap
        def run(key, rate=rate):
            return mlm_loss(
                oracle.denoiser(),
                key,
                tokens,
                mask_id=MASK,
                rate=rate,
                mask_share=1,
                random_share=0,
            )[0]

        losses = np.asarray(run(jax.random.split(KEY, 4000)), np.float64)
        sets = [nats / k for positions, nats in oracle.set_nats(string) if len(positions) == k]
        assert np.ptp(losses) <= np.ptp(sets) + 1e-4
        error = losses.std() / np.sqrt(len(losses)) + 1e-5
        assert abs(losses.mean() - np.mean(sets)) < 4 * error


def test_aux_counts_by_rate():
    parameters, build = table_denoiser()
    corrupted = corrupt(KEY, TOKENS, mask_id=10)
    _, aux = corrupted_loss(build(parameters), corrupted)
    masked = np.asarray(corrupted.canvas == 10)
    bins = np.zeros(10, int)
    for row in masked:
        bins[int(np.ceil(row.sum() / 6 * 10 - 1e-6)) - 1] += row.sum()
    assert np.array_equal(aux.masked, bins)
    logits = build(parameters).readout(
        build(parameters).encode(corrupted.canvas, corrupted.t).at, ()
    )
    right = np.asarray(logits.reshape(8, 6, -1).argmax(axis=-1) == TOKENS) & masked
    assert aux.correct.sum() == right.sum()
    np.testing.assert_allclose(aux.accuracy, right.sum() / masked.sum(), rtol=1e-6)
    filled = bins > 0
    np.testing.assert_allclose(aux.loss_by_rate[filled], (aux.nats / bins)[filled], rtol=1e-6)
    assert np.all(np.isnan(aux.loss_by_rate[~filled]))


def test_the_mask_cannot_be_predicted():
    """Whoever leaves the mask's logit in gets it removed: the loss is that of the other tokens."""
    parameters, build = table_denoiser()
    with_mask, without = build(parameters, mask_id=None), build(parameters)
    loss, _ = diffusion_loss(with_mask, KEY, TOKENS, mask_id=10)
    np.testing.assert_allclose(loss, diffusion_loss(without, KEY, TOKENS, mask_id=10)[0], rtol=1e-6)
    assert loss < corrupted_loss(with_mask, corrupt(KEY, TOKENS, mask_id=10))[0]

    @jax.jit
    def others(scale):  # of the mask's logit
        out = parameters["out"].at[:, 10].multiply(scale)
        denoiser = build({**parameters, "out": out}, mask_id=None)
        loss = mlm_loss(denoiser, KEY, TOKENS, mask_id=10)[0]
        bound = nelbo(denoiser, KEY, TOKENS, mask_id=10, draws=2).nats
        return loss, bound, at_rate(denoiser, KEY, TOKENS, mask_id=10, rate=0.5).nats

    for told, expected in zip(others(9.0), others(0.0), strict=True):
        np.testing.assert_allclose(told, expected, rtol=1e-5)


def test_random_tokens_of_mlm_stay_within_the_vocabulary_that_is_told():
    """A denoiser of 64 logits, of which 13 are tokens: it records what it is shown."""
    seen = []

    def logits(tokens, t):
        jax.debug.callback(lambda canvas: seen.append(np.asarray(canvas)), tokens)
        return jnp.zeros((*tokens.shape, 64))

    tokens = jnp.zeros((8, 64), jnp.int32)
    flags = {"mask_id": 4, "rate": 1.0, "mask_share": 0.0, "random_share": 1.0}
    mlm_loss(as_denoiser(logits), jax.random.key(0), tokens, vocab_size=13, **flags)
    jax.effects_barrier()
    assert seen[0].max() == 12
    mlm_loss(as_denoiser(logits), jax.random.key(0), tokens, **flags)
    jax.effects_barrier()
    assert seen[-1].max() > 12


def test_a_mask_outside_the_vocabulary_and_two_masks_are_refused():
    logits = lambda tokens, t: jnp.zeros((*tokens.shape, 11))  # noqa: E731
    free, own, sampled = as_denoiser(logits), as_denoiser(logits, 10), jnp.full((1, 4), 12)
    guided = transforms.guide(own, free, 2.0)
    penalised = transforms.repetition_penalty(transforms.top_k(own, 2), 1.2)
    calls = {
        "loss": lambda denoiser, mask: diffusion_loss(denoiser, KEY, TOKENS, mask_id=mask),
        "mlm": lambda denoiser, mask: mlm_loss(denoiser, KEY, TOKENS, mask_id=mask, vocab_size=100),
        "nelbo": lambda denoiser, mask: nelbo(denoiser, KEY, TOKENS, mask_id=mask),
        "rate": lambda denoiser, mask: at_rate(denoiser, KEY, TOKENS, mask_id=mask, rate=0.5),
        "sample": lambda denoiser, mask: sample(
            denoiser, KEY, sampled, mask_id=mask, steps=2, strategy=strategies.exact_count()
        ),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match="mask_id is 12, but the logits are of 11 tokens"):
            jax.eval_shape(lambda call=call: call(free, 12))
        for denoiser in (own, guided, penalised):
            with pytest.raises(ValueError, match=r"mask_id is 12, but the denoiser .* 10"):
                jax.eval_shape(lambda call=call, denoiser=denoiser: call(denoiser, 12))
    with pytest.raises(ValueError, match=r"mask_id is 9, but the denoiser .* 10"):
        transforms.guide(as_denoiser(logits, 9), own, 2.0)
    with pytest.raises(ValueError, match="mask_id is 11, but the logits are of 11 tokens"):
        diffusion_loss(as_denoiser(logits, 11), KEY, TOKENS, mask_id=11)
