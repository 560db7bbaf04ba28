import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdlm_jax import Denoiser, Hidden, as_denoiser, corrupted_loss, sample, strategies, transforms
from mdlm_jax.diffusion import nelbo
from mdlm_jax.diffusion.denoisers import law_of, remove_mask
from mdlm_jax.diffusion.enumeration import enumerated_nelbo
from mdlm_jax.diffusion.processes.corruption import corrupt

V, MASK = 6, 5
KEY = jax.random.key(0)
TOKENS = jnp.array([[0, 2, MASK], [MASK, MASK, 3]])  # [B, L]


def logits_at(denoiser, t=0.5):
    """`[B, L, V]` of what is drawn from, through both halves."""
    hidden = denoiser.encode(TOKENS, jnp.full(2, t))
    at = jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), hidden.at)
    row = jax.tree.map(lambda x: jnp.repeat(x, 3, axis=0), hidden.row)
    return np.asarray(law_of(denoiser)(at, row)).reshape(2, 3, V)


def probabilities(denoiser, t=0.5):
    return np.asarray(jax.nn.softmax(logits_at(denoiser, t), axis=-1))


def random_denoiser(seed=0, scale=2.0):
    """The mask is the likeliest token of what it is made of, and the denoiser removes it."""
    logits = scale * np.random.default_rng(seed).normal(size=(2, 3, V)).astype(np.float32)
    logits[..., MASK] = 10
    return as_denoiser(lambda tokens, t: jnp.asarray(logits), MASK)


WAYS = {
    "temperature": lambda d: transforms.temperature(d, 0.7),
    "cold": lambda d: transforms.temperature(d, 0.0),
    "hot": lambda d: transforms.temperature(d, 100.0),
    "top_k": lambda d: transforms.top_k(d, 1),
    "top_p": lambda d: transforms.top_p(d, 0.3),
    "min_p": lambda d: transforms.min_p(d, 0.9),
    "forbid": lambda d: transforms.forbid(d, [0, 1, 3]),
    "forbid others": lambda d: transforms.forbid(d, [0, 2, 4]),
    "repetition_penalty": lambda d: transforms.repetition_penalty(d, 1.5),
    "guide": lambda d: transforms.guide(d, random_denoiser(1), 3.0),
    "guide against": lambda d: transforms.guide(random_denoiser(1), d, 3.0),
}


GUIDES = {"guide", "guide against"}
# All but the two that together forbid everything, and shapes before guides.
PAIRS = [
    p
    for p in itertools.permutations(WAYS, 2)
    if set(p) != {"forbid", "forbid others"} and not (p[1] in GUIDES and p[0] not in GUIDES)
]


@pytest.mark.parametrize("names", PAIRS, ids=" then ".join)
def test_any_two_leave_something_to_draw_and_never_the_mask(names):
    denoiser = random_denoiser()
    for name in names:
        denoiser = WAYS[name](denoiser)
    logits = logits_at(denoiser)
    assert not np.any(np.isnan(logits)) and not np.any(np.isposinf(logits))
    assert np.all(np.isneginf(logits[..., MASK]))
    assert np.all(np.isfinite(logits).any(axis=-1))
    for name, ids in (("forbid", [0, 1, 3]), ("forbid others", [0, 2, 4])):
        if name in names:
            assert np.all(probabilities(denoiser)[..., ids] == 0)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(sorted(WAYS)), min_size=3, max_size=5, unique=True))
def test_any_order_leaves_something_to_draw(names):
    if {"forbid", "forbid others"} <= set(names):
        names.remove("forbid")  # together they forbid everything
    denoiser = random_denoiser()
    for name in sorted(names, key=lambda name: name not in GUIDES):
        denoiser = WAYS[name](denoiser)
    p = probabilities(denoiser)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-5)
    assert np.all(p[..., MASK] == 0)


def test_what_was_cut_off_is_drawn_only_where_all_else_is_forbidden():
    denoiser = as_denoiser(lambda tokens, t: jnp.broadcast_to(jnp.arange(6.0), (2, 3, V)), MASK)
    best = transforms.top_k(denoiser, 2)
    np.testing.assert_allclose(probabilities(best)[0, 0], [0, 0, 0, 0.26894, 0.73106, 0], atol=1e-4)
    below = probabilities(transforms.forbid(best, [3, 4]))[0, 0]  # float32 near 1e5: to a percent
    np.testing.assert_allclose(below, [0.0900, 0.2447, 0.6652, 0, 0, 0], rtol=2e-2)


def test_temperature_is_a_power_of_the_probabilities():
    p = probabilities(random_denoiser()) ** 2
    expected = p / p.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(
        probabilities(transforms.temperature(random_denoiser(), 0.5)), expected, atol=1e-6
    )
    cold = probabilities(transforms.temperature(random_denoiser(), 0))
    assert np.array_equal(cold, np.eye(V)[p.argmax(axis=-1)])


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 1.0), st.integers(0, 10**6))
def test_the_nucleus_is_the_smallest_set_that_holds_p(p, seed):
    whole = probabilities(random_denoiser(seed)).reshape(-1, V)
    kept = probabilities(transforms.top_p(random_denoiser(seed), p)).reshape(-1, V) > 0
    for of_all, inside in zip(whole.astype(np.float64), kept, strict=True):
        held = of_all[inside].sum()
        assert held >= p - 1e-5
        assert held - of_all[inside].min() < p + 1e-5
        assert of_all[inside].min() >= of_all[~inside].max()


def test_top_k_and_min_p_keep_the_best():
    whole = probabilities(random_denoiser())
    kept = probabilities(transforms.top_k(random_denoiser(), 3)) > 0
    assert np.all(kept.sum(axis=-1) == 3)
    assert np.all(np.where(kept, whole, 1).min(axis=-1) > np.where(kept, 0, whole).max(axis=-1))
    assert np.array_equal(probabilities(transforms.top_k(random_denoiser(), 99)), whole)
    kept = probabilities(transforms.min_p(random_denoiser(), 0.2)) > 0
    assert np.array_equal(kept, whole >= 0.2 * whole.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(probabilities(transforms.min_p(random_denoiser(), 0)), whole)


def test_the_penalty_falls_on_what_stands_in_the_row():
    whole = np.log(probabilities(random_denoiser())[..., :MASK])
    logits = logits_at(transforms.repetition_penalty(random_denoiser(), 2.0))[..., :MASK]
    stands = np.array([[1, 0, 1, 0, 0], [0, 0, 0, 1, 0]], bool)[:, None]
    np.testing.assert_allclose(logits, np.where(stands, 2 * whole, whole), rtol=1e-5)


def test_guidance_interpolates_extrapolates_and_may_change_with_time():
    a, b = random_denoiser(0), random_denoiser(1)
    p, q = probabilities(a), probabilities(b)
    np.testing.assert_allclose(probabilities(transforms.guide(a, b, 1.0)), p, atol=1e-6)
    np.testing.assert_allclose(probabilities(transforms.guide(a, b, 0.0)), q, atol=1e-6)
    with np.errstate(divide="ignore"):
        expected = p**3.0 * np.where(q > 0, q, 1) ** -2.0
    expected = expected / expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(probabilities(transforms.guide(a, b, 3.0)), expected, atol=1e-5)
    late = transforms.guide(a, b, 3.0, schedule=lambda t: jnp.where(t < 0.5, 1.0, 0.0))
    np.testing.assert_allclose(probabilities(late, 0.4), expected, atol=1e-5)
    np.testing.assert_allclose(probabilities(late, 0.6), p, atol=1e-6)
    by_row = transforms.guide(a, b, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(probabilities(by_row), np.stack([p[0], q[1]]), atol=1e-6)


def test_guidance_rules_out_what_either_does():
    """Where a model has `-inf`, or a number that stands for it."""
    first = random_denoiser(0)
    a = first._replace(readout=lambda at, row: first.readout(at, row).at[:, 2].set(-jnp.inf))
    b = first._replace(readout=lambda at, row: first.readout(at, row).at[:, 3].set(-3e38))
    for weight in (0.5, 3.0, -1.0):
        guided = probabilities(transforms.guide(a, b, weight))
        assert np.all(guided[..., 2:4] == 0) and np.all(guided[..., :2] > 0)


SHAPES = sorted(set(WAYS) - GUIDES)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_leave_the_models_own_logits_and_are_refused_by_guidance(name):
    plain = random_denoiser()
    shaped = WAYS[name](plain)
    hidden = shaped.encode(TOKENS, jnp.full(2, 0.5))
    own = shaped.readout(jax.tree.map(lambda x: x[:, 0], hidden.at), hidden.row)
    expected = plain.readout(plain.encode(TOKENS, jnp.full(2, 0.5)).at[:, 0], ())
    assert np.array_equal(own, expected)
    for guided in ((shaped, plain), (plain, shaped)):
        with pytest.raises(ValueError, match=r"conditional is shaped already .*: shape after guid"):
            transforms.guide(*guided, 2.0)


def test_losses_and_likelihoods_are_of_the_shaped_law():
    """Of the same logits, made the model's own."""
    plain = random_denoiser()
    shaped = transforms.temperature(transforms.forbid(plain, [0]), 0.5)
    same = plain._replace(readout=lambda at, row: shaped.shape(plain.readout(at, row), row))
    tokens = jnp.array([[1, 2, 4], [3, 3, 1]])

    @jax.jit
    def told():
        corrupted = corrupt(KEY, tokens, mask_id=MASK)
        losses = [corrupted_loss(d, corrupted, mask_id=MASK)[0] for d in (shaped, same, plain)]
        return losses, [nelbo(d, KEY, tokens, mask_id=MASK, draws=4).nats for d in (shaped, same)]

    (loss, expected, unshaped), likelihoods = told()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert abs(loss - unshaped) > 0.1
    np.testing.assert_allclose(*likelihoods, rtol=1e-6)


@pytest.mark.parametrize("name", WAYS)
def test_transforms_are_equal_by_value(name):
    base, other = random_denoiser(), random_denoiser(1)
    way = {
        **WAYS,
        "guide": lambda d: transforms.guide(d, other, 3.0),
        "guide against": lambda d: transforms.guide(other, d, 3.0),
    }[name]
    assert way(base) == way(base) and hash(way(base)) == hash(way(base))
    assert way(base) != base and way(base) != way(random_denoiser(2))
    assert way(base) != transforms.temperature(way(base), 0.9)


@pytest.mark.parametrize("size", [6, 126_464])
@pytest.mark.parametrize(
    "change",
    [
        lambda d: transforms.top_p(d, 1.0),
        lambda d: transforms.top_p(d, jnp.float32(1.0)),
        lambda d: transforms.min_p(d, 0.0),
        lambda d: transforms.top_k(d, 126_464),
    ],
)
def test_the_strength_that_cuts_nothing_cuts_nothing(size, change):
    """Tokens from even to 200 nats apart; the mask's `-inf` stays."""
    rows = np.random.default_rng(0).normal(size=(4, size)) * np.array([[0], [1], [5], [50]])
    logits = jnp.asarray(rows, jnp.float32).at[:, 5].set(-jnp.inf)
    assert np.array_equal(change(random_denoiser()).shape(logits, ()), logits)


def test_a_nucleus_of_a_large_vocabulary_holds_its_share():
    """126,464 tokens, half as likely every 20,000, summed as float64 sums them."""
    logits = -np.arange(126_464) * np.log(2) / 20_000
    p = np.exp(logits) / np.exp(logits).sum()
    for share in (0.5, 0.99, 0.999):
        shape = transforms.top_p(random_denoiser(), share).shape
        kept = np.asarray(shape(jnp.asarray(logits[None], jnp.float32), ()))[0] > -1e4
        held = p[kept].sum()
        assert held > share - 2e-6 and held - p[kept].min() < share + 2e-6


def test_strengths_at_the_other_end_leave_the_best_and_its_ties():
    logits = jnp.array([[1.0, 3.0, 3.0, 0.0, -jnp.inf]])
    for change in (
        lambda d: transforms.top_k(d, 1),
        lambda d: transforms.top_p(d, 1e-9),
        lambda d: transforms.min_p(d, 1.0),
        lambda d: transforms.temperature(d, 0.0),
    ):
        shaped = jax.nn.softmax(change(random_denoiser()).shape(logits, ()))
        assert np.array_equal(shaped, [[0, 0.5, 0.5, 0, 0]])


def test_only_what_is_read_out_is_transformed_and_strengths_are_traced():
    seen = []

    def readout(at, row):
        jax.debug.callback(lambda x: seen.append(len(x)), at)
        return jnp.zeros((len(at), 5))

    plain = Denoiser(lambda tokens, t: Hidden(at=jnp.zeros(tokens.shape)), readout)

    @jax.jit
    def write(temperature, p, penalty):
        denoiser = transforms.repetition_penalty(plain, penalty)
        denoiser = transforms.min_p(transforms.temperature(denoiser, temperature), p)
        return sample(
            transforms.top_p(denoiser, p), KEY, jnp.full((2, 8), 4), mask_id=4, steps=4,
            strategy=strategies.exact_count(), chunk=1,
        )  # fmt: skip

    for strengths in ((1.0, 0.9, 1.2), (0.5, 0.3, 2.0)):
        jax.block_until_ready(write(*strengths))
    jax.effects_barrier()
    assert sum(seen) == 2 * 16
    assert write._cache_size() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: transforms.temperature(d, -1.0), "temperature: value is -1.0, it must be at"),
        (lambda d: transforms.top_k(d, 0), "top_k: k is 0, it must be at least 1"),
        (lambda d: transforms.temperature(d, np.inf), "value is inf, it must be at least 0 and f"),
        (lambda d: transforms.top_k(d, 2.5), "top_k: k is 2.5, it must be at least 1, a whole"),
        (lambda d: transforms.repetition_penalty(d, np.inf), "must be positive and finite"),
        (lambda d: transforms.top_p(d, 0.0), "top_p: p is 0.0, it must be above 0 and at most 1"),
        (lambda d: transforms.min_p(d, 1.5), "min_p: p is 1.5, it must be from 0 to 1"),
        (lambda d: transforms.repetition_penalty(d, 0), "penalty is 0, it must be positive"),
        (lambda d: transforms.forbid(d, [-1]), "forbid: token -1 must not be negative"),
        (lambda d: logits_at(transforms.forbid(d, [6])), "forbid: token 6 must be below 6"),
    ],
)
def test_bad_strengths_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(random_denoiser())


def test_the_first_token_may_be_the_mask_and_nothing_need_be_forbidden():
    logits = jnp.zeros((1, 3))
    for mask_id in (0, jnp.int32(0)):
        assert jax.jit(remove_mask)(logits, mask_id).tolist() == [[-np.inf, 0, 0]]
    assert remove_mask(logits, 0).tolist() == [[-np.inf, 0, 0]]
    for outside in (-1, 3):
        with pytest.raises(ValueError, match=f"mask_id is {outside}, but the logits are of 3"):
            remove_mask(logits, outside)
    plain = random_denoiser()
    np.testing.assert_array_equal(logits_at(transforms.forbid(plain, [])), logits_at(plain))


FIRST, BEHIND = jnp.array([0, 2, 1]), jnp.array([[2, 4, 2], [1, 5, 4]])  # by position, and row


def test_a_range_rules_out_all_other_tokens_of_the_models_own_law():
    plain = random_denoiser()
    narrow = transforms.within(plain, FIRST, BEHIND)
    ids = np.arange(V)
    inside = (ids >= np.asarray(FIRST)[:, None]) & (ids < np.asarray(BEHIND)[..., None])
    expected = probabilities(plain) * inside
    expected /= expected.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(probabilities(narrow), expected, atol=1e-6)
    # What shapes comes behind, and has no say in what is ruled out.
    cold = probabilities(transforms.temperature(narrow, 0.5))
    np.testing.assert_allclose(cold, expected**2 / (expected**2).sum(-1, keepdims=True), atol=1e-6)
    with pytest.raises(ValueError, match="within: the denoiser is shaped already"):
        transforms.within(transforms.top_k(plain, 2), FIRST, BEHIND)


def test_a_range_holds_in_losses_and_samples():
    narrow = transforms.within(random_denoiser(), FIRST, BEHIND)
    tokens = jnp.array([[1, 3, 1], [0, 2, 3]])
    p = probabilities(narrow)[np.arange(2)[:, None], np.arange(3), tokens]

    @jax.jit
    def told():
        bound = enumerated_nelbo(narrow, tokens, mask_id=MASK, longest=3)
        drawn = sample(narrow, KEY, jnp.full((2, 3), MASK), mask_id=MASK, steps=2)
        return bound, drawn

    bound, drawn = told()
    np.testing.assert_allclose(bound, -np.log(p).sum(axis=1), rtol=1e-5)  # of no context
    assert (drawn >= FIRST).all() and (drawn < BEHIND).all()
