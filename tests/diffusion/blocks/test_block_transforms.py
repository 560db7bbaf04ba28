"""Transforms of block denoisers that remember: a guide, and a penalty for repetitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from any_width import of_any_width
from block_law import block_denoiser, enumerated, law_of_writing
from every_strategy import any_conditionals, table_denoiser
from oracle import CANVASES, MASK, STRINGS, L, V, chi_square_p

from mdlm_jax import blocks, sample, transforms

KEY = jax.random.key(0)
ONE, OTHER = any_conditionals(3), any_conditionals(4)  # with a condition, and without
WEIGHT, PENALTY = 1.7, 2.5
ALARM = 1e-4  # of each chi-square test, of which there are 8; seeds are fixed


def normalised(p):
    return p / p.sum(axis=-1, keepdims=True)


def standing(canvases):
    """bool[256, 1, V]: what stands in each canvas."""
    return (canvases[:, :, None] == np.arange(V)).any(axis=1)[:, None]


GUIDED = normalised(ONE**WEIGHT * OTHER ** (1 - WEIGHT))
PENALISED = normalised(np.where(standing(CANVASES), ONE**PENALTY, ONE))


def guided(of):
    return transforms.guide(of(ONE), of(OTHER), WEIGHT)


def penalised(of):
    return transforms.repetition_penalty(of(ONE), PENALTY)


WAYS = {"guide": (guided, GUIDED), "penalty": (penalised, PENALISED)}


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_one_block_is_what_the_transform_makes_of_the_row_token_for_token(name):
    way, _ = WAYS[name]
    canvas = np.repeat([[MASK] * 4, [1, MASK, MASK, 2]], 20, axis=0)
    options = {"mask_id": MASK, "steps": 3, "trace": True, "end_id": 0}

    @jax.jit
    def both():
        by_block = way(functools.partial(block_denoiser, size=L))
        return (
            sample(way(table_denoiser), KEY, canvas, **options),
            blocks.sample(by_block, KEY, canvas, **options),
        )

    rows, by_block = both()
    jax.tree.map(np.testing.assert_array_equal, rows, by_block)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", WAYS)
def test_a_token_a_step_follows_the_law_that_the_transform_makes(name, size):
    way, conditionals = WAYS[name]
    canvases = [[MASK] * 4, [2, 0, MASK, MASK]]  # with a prompt
    laws = [law_of_writing(conditionals, canvas, size) for canvas in canvases]
    plain = [law_of_writing(ONE, canvas, size) for canvas in canvases]
    assert min(np.abs(a - b).sum() for a, b in zip(laws, plain, strict=True)) > 0.1
    rows = 4000
    tokens = jax.jit(
        lambda key: blocks.sample(
            way(functools.partial(block_denoiser, size=size)), key,
            jnp.repeat(jnp.asarray(canvases), rows, axis=0), mask_id=MASK, steps=size,
            chunk=2 * rows,
        )
    )(KEY)  # fmt: skip
    numbers = np.asarray(tokens).reshape(2, rows, L) @ V ** np.arange(L - 1, -1, -1)
    for of_canvas, law in zip(numbers, laws, strict=True):
        assert chi_square_p(np.bincount(of_canvas, minlength=len(STRINGS)), law) > ALARM


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_what_a_network_can_do_at_once_changes_nothing(name):
    """`advance` and `prefill`, in rows with prompts of their own and a weight a row."""
    values = jnp.array([1.0, 2.0, 0.5, 3.0])
    place, prompt = jnp.arange(12)[None], jnp.array([0, 5, 8, 12])[:, None]
    canvas = jnp.where((place < prompt) | (place == 9), place % 3, MASK)

    def write(**ways):
        one, other = of_any_width(2, **ways), of_any_width(2, seed=3, **ways)
        if name == "guide":
            denoiser = transforms.guide(one, other, values)
        else:
            denoiser = transforms.repetition_penalty(one, values)
        assert (denoiser.advance is None) != bool(ways.get("fused"))
        assert (denoiser.prefill is None) != bool(ways.get("ahead"))
        denoiser = transforms.temperature(denoiser, 0.8)
        return blocks.sample(denoiser, KEY, canvas, mask_id=MASK, steps=2)

    plain = of_any_width(2)
    tokens, at_once, untransformed = jax.jit(
        lambda: (
            write(),
            write(fused=True, ahead=True),
            blocks.sample(plain, KEY, canvas, mask_id=MASK, steps=2),
        )
    )()
    np.testing.assert_array_equal(at_once, tokens)
    assert np.any(untransformed != tokens)


def test_a_row_that_is_cleared_has_nothing_standing():
    inner = of_any_width(2, ahead=True)
    inner = inner._replace(clear=lambda cache, where: cache)
    denoiser = transforms.repetition_penalty(inner, 2.0)
    cache = denoiser.extend(denoiser.start(2, 4), jnp.array([[0, 1], [2, 2]]))
    assert cache.tokens.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]
    cache = denoiser.clear(cache, jnp.array([True, False]))
    assert cache.tokens.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0]]
    where = jnp.array([True, False])
    cache = denoiser.extend(cache, jnp.array([[0, 1], [1, 1]]), where=where)
    assert cache.tokens.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.slow
def test_the_bound_of_a_guided_model_is_that_of_the_mixture():
    denoiser = guided(functools.partial(block_denoiser, size=2))
    found = jax.jit(
        lambda: blocks.nelbo(denoiser, None, jnp.asarray(STRINGS[:9]), mask_id=MASK, draws="all")
    )()
    want = [enumerated(GUIDED, string, 2) for string in STRINGS[:9]]
    np.testing.assert_allclose(found.nats, want, rtol=1e-4)


def test_a_schedule_follows_the_time_of_each_block():
    of = functools.partial(block_denoiser, size=2)
    tokens, t = jnp.asarray(CANVASES[[3, 77]]), jnp.array([[0.2, 0.9], [0.5, 0.0]])

    def logits(denoiser):
        hidden = denoiser.encode(tokens, jnp.asarray(STRINGS[:2]), t)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), hidden.at)
        return denoiser.readout(flat, hidden.row).reshape(2, 2, 2, -1)[..., :V]

    out = logits(transforms.guide(of(ONE), of(OTHER), 3.0, lambda t: t))
    for row, block in np.ndindex(2, 2):
        weight = 1 + 2 * float(t[row, block])
        want = logits(transforms.guide(of(ONE), of(OTHER), weight))
        np.testing.assert_allclose(out[row, block], want[row, block], atol=1e-5)


def test_what_does_not_go_together_is_refused():
    plain, other = of_any_width(2), of_any_width(3)
    with pytest.raises(ValueError, match="blocks of 2 and of 3 tokens: they must be the same"):
        transforms.guide(plain, other, 2.0)
    with pytest.raises(ValueError, match="the unconditional is shaped already"):
        transforms.guide(plain, transforms.temperature(plain, 0.5), 2.0)
    with pytest.raises(TypeError, match="guide: one is a BlockDenoiser, the other is not"):
        transforms.guide(plain, table_denoiser(ONE), 2.0)
    with pytest.raises(TypeError, match="within: it takes a Denoiser of whole rows"):
        transforms.within(plain, 0, 2)
    text = jnp.asarray(STRINGS[:2])
    with pytest.raises(TypeError, match="it shapes what is written, not all blocks"):
        blocks.nelbo(penalised(functools.partial(block_denoiser, size=2)), KEY, text, mask_id=MASK)
