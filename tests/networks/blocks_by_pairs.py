"""What a block sees, written down pair by pair, and a block denoiser's functions to logits.

`reference` computes one dense stream of the noisy and the clean text, in float64.
"""

import dataclasses
import functools

import jax
import jax.extend
import numpy as np
from networks import reference
from networks.tiny import BASE, params_of

from mdlm_jax.networks import bert

ROWS, LENGTH, SIZE = 2, 12, 3
COUNT = LENGTH // SIZE
LONG = dataclasses.replace(BASE, max_length=LENGTH, dropout=0.0)
MODERN = dataclasses.replace(
    LONG,
    norm_position="pre",
    norm="rmsnorm",
    positions="rope",
    qk_norm=True,
    gated=True,
    activation="silu",
    token_types=0,
    use_bias=False,
    vocab_multiple=8,
)
CONFIGS = {
    "post": LONG,
    "modern": MODERN,
    "in line": dataclasses.replace(MODERN, embedding_norm=True, scan=False, layers=3),
    "one layer": dataclasses.replace(LONG, layers=1, classes=3, positions="rope"),
}
NOISY, CLEAN = np.random.default_rng(0).integers(
    0, BASE.vocab_size, (2, ROWS, LENGTH), dtype=np.int32
)
T = np.ones((ROWS, COUNT), np.float32)
LABEL = np.int32([2, -1])


def sees(length, size, window=None):
    """bool[2 L, 2 L], query and key, of a noisy text and the clean one behind it."""
    allowed = np.zeros((2 * length, 2 * length), bool)
    for query in range(2 * length):
        for key in range(2 * length):
            block, of = query % length // size, key % length // size
            near = window is None or key % length >= block * size - window
            if query < length and key < length:  # noisy, noisy
                allowed[query, key] = block == of
            elif query < length:  # noisy, clean
                allowed[query, key] = of < block and near
            elif key >= length:  # clean, clean
                allowed[query, key] = of <= block and near
    return allowed


def expected(params, config, noisy=NOISY, clean=CLEAN, size=SIZE, window=None, **told):
    """f64[B, L, V]: what `reference` computes of the noisy text."""
    rows, length = noisy.shape
    mask = np.broadcast_to(sees(length, size, window), (rows, 2 * length, 2 * length))
    places = np.tile(np.arange(length), 2)
    both = np.concatenate([noisy, clean], axis=1)
    out = reference.logits(params, config, both, places=places, sees=mask, **told)[:, :length]
    out[..., config.mask_id] = -np.inf
    return out


def told_of(config):
    return {"label": LABEL} if config.classes else {}


class Functions:
    """A block denoiser's functions to logits, each compiled once."""

    def __init__(self, params, config, size=SIZE, **options):
        def build(params):
            return bert.block_denoiser(params, config, size, **options)

        def logits(denoiser, hidden):
            return denoiser.readout(hidden.at, hidden.row)[..., : config.vocab_size]

        @jax.jit
        def encode(params, *args):
            return logits(build(params), build(params).encode(*args))

        @jax.jit
        def encode_block(params, *args):
            return logits(build(params), build(params).encode_block(*args))

        @jax.jit
        def advance(params, *args):
            cache, hidden = build(params).advance(*args)
            return cache, logits(build(params), hidden)

        @jax.jit
        def extend(params, *args):
            return build(params).extend(*args)

        self.size, self.start = size, build(params).start
        self.encode, self.encode_block, self.advance, self.extend = (
            functools.partial(fn, params) for fn in (encode, encode_block, advance, extend)
        )

    def block(self, x, i):
        return x[:, i * self.size : (i + 1) * self.size]

    def committed(self, clean, room=None):
        """The caches before each block."""
        cache = self.start(len(clean), room or clean.shape[1])
        yield cache
        for i in range(clean.shape[1] // self.size - 1):
            cache = self.extend(cache, self.block(clean, i))
            yield cache

    def one_by_one(self, noisy, clean, room=None):
        """The logits of all blocks after caches: `extend`, then `encode_block`."""
        out = [
            self.encode_block(cache, self.block(noisy, i), T[:1, 0].repeat(len(noisy)))
            for i, cache in enumerate(self.committed(clean, room))
        ]
        return np.concatenate(out, axis=1)


@functools.cache
def functions_of(name):
    config = CONFIGS[name]
    return Functions(params_of(config), config, **told_of(config))


@functools.cache
def expected_of(name):
    config = CONFIGS[name]
    out = expected(params_of(config), config, **told_of(config))
    assert np.ptp(out[np.isfinite(out)]) > 1
    return out


def build(config=MODERN, size=SIZE, **options):
    return bert.block_denoiser(params_of(config), config, size, **options)


def in_program(jaxpr):
    """Every equation of a program, those of its loops and branches among them."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from in_program(inner)
