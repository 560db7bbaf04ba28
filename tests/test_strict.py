"""The core under JAX's strict switches: no implicit promotion of ranks or of dtypes.

Everything is traced, nothing compiled: promotions are refused while a program is traced.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mdlm_jax import (
    as_denoiser,
    at_rate,
    blocks,
    causal_likelihood,
    diffusion_loss,
    keep_around,
    keep_prefix,
    mlm_loss,
    nelbo,
    sample,
    schedules,
    strategies,
    transforms,
)
from mdlm_jax.diffusion.enumeration import enumerated_nelbo
from mdlm_jax.networks import bert

sys.path += [str(Path(__file__).parent / room) for room in ("networks", "training")]
import tiny
import toy_regression as toy
from every_strategy import EVERY

MASK = 12
KEY = jax.random.key(0)
TOKENS = jnp.zeros((4, 8), jnp.int32)
CANVAS = TOKENS.at[:, 2:].set(MASK)
TABLE = jnp.zeros((13, 13))
ROWS = jnp.array([4, 5, 0, 1])


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def lifted(table):
    return as_denoiser(lambda tokens, t: table[tokens], MASK)


TEXT = {"key": KEY, "tokens": TOKENS, "mask_id": MASK}
LOSSES = {
    "exact": lambda d: diffusion_loss(d, **TEXT)[0],
    "bernoulli": lambda d: diffusion_loss(d, **TEXT, corruption="bernoulli")[0],
    "max_rate": lambda d: diffusion_loss(d, **TEXT, max_rate=0.5)[0],
    "cosine": lambda d: diffusion_loss(d, **TEXT, schedule=schedules.cosine())[0],
    "square": lambda d: diffusion_loss(d, **TEXT, schedule=schedules.polynomial(2))[0],
    "rows": lambda d: diffusion_loss(d, **TEXT, rows=ROWS)[0],
    "by rate": lambda d: jnp.nansum(diffusion_loss(d, **TEXT)[1].loss_by_rate),
    "accuracy": lambda d: diffusion_loss(d, **TEXT)[1].accuracy,
    "mlm": lambda d: mlm_loss(d, **TEXT)[0],
    "nelbo": lambda d: sum(_told(nelbo(d, **TEXT, draws=4))),
    "at_rate": lambda d: at_rate(d, **TEXT, rate=0.3).nats.sum(),
    "causal": lambda d: causal_likelihood(d, TOKENS, start_id=0).nats_per_token,
}


def _told(likelihood):
    return likelihood.nats_per_token, likelihood.mc_error, likelihood.text_error


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_likelihoods(name):
    jax.eval_shape(jax.grad(lambda table: LOSSES[name](lifted(table))), TABLE)


def of_blocks(table):
    return blocks.as_block_denoiser(lambda noisy, clean, t: table[noisy] + table[clean], 4, MASK)


BLOCK_LOSSES = {
    "loss": lambda d: blocks.loss(d, **TEXT)[0],
    "rows": lambda d: blocks.loss(d, **TEXT, rows=ROWS)[0],
    "keys": lambda d: blocks.loss(d, **TEXT | {"key": None}, keys=jax.random.split(KEY, 4))[0],
    "nelbo": lambda d: sum(_told(blocks.nelbo(d, **TEXT, draws=4))),
}


@pytest.mark.parametrize("name", BLOCK_LOSSES)
def test_blocks(name):
    jax.eval_shape(jax.grad(lambda table: BLOCK_LOSSES[name](of_blocks(table))), TABLE)


def test_what_has_no_gradient():
    jax.eval_shape(lambda: blocks.nelbo(of_blocks(TABLE), **TEXT, draws="all"))
    jax.eval_shape(lambda: enumerated_nelbo(lifted(TABLE), TOKENS[:, :3], mask_id=MASK, longest=3))
    jax.eval_shape(lambda: (keep_prefix(KEY, TOKENS == 0), keep_around(KEY, TOKENS == 0)))


def write(denoiser, strategy, **options):
    return sample(denoiser, KEY, CANVAS, mask_id=MASK, steps=3, strategy=strategy, **options)


@pytest.mark.parametrize("name", EVERY)
def test_strategies(name):
    jax.eval_shape(lambda: write(lifted(TABLE), EVERY[name], blocks=2, end_id=1, trace=True))


@pytest.mark.parametrize("strategy", ["exact_count", "path_planning"])
def test_sampling_in_blocks(strategy):
    jax.eval_shape(
        lambda: blocks.sample(
            of_blocks(TABLE), KEY, CANVAS, mask_id=MASK, steps=3, strategy=EVERY[strategy],
            end_id=1, trace=True,
        )
    )  # fmt: skip


def test_the_documented_defaults_of_sampling():
    keys = jax.random.split(KEY, 4)
    jax.eval_shape(lambda: sample(lifted(TABLE), None, CANVAS, mask_id=MASK, keys=keys))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: transforms.temperature(d, 0.8),
        lambda d: transforms.top_k(d, 3),
        lambda d: transforms.top_p(d, 0.8),
        lambda d: transforms.min_p(d, 0.1),
        lambda d: transforms.forbid(d, [2]),
        lambda d: transforms.within(d, jnp.zeros((4, 1), jnp.int32), jnp.int32(9)),
        lambda d: transforms.repetition_penalty(d, 1.2),
        lambda d: transforms.guide(d, d, jnp.full(4, 2.0), lambda t: t),
    ],
    ids=[
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "forbid",
        "within",
        "repetition_penalty",
        "guide",
    ],
)
def test_transforms(change):
    jax.eval_shape(lambda: write(change(lifted(TABLE)), strategies.confidence("margin")))
    jax.eval_shape(lambda: diffusion_loss(change(lifted(TABLE)), **TEXT)[0])


NETWORKS = {
    "bert": {},
    "modern": {
        "norm_position": "pre", "positions": "rope", "norm": "rmsnorm", "use_bias": False,
        "gated": True, "qk_norm": True, "activation": "silu",
    },
    "time": {"time_conditioning": True, "classes": 3, "class_dropout": 0.2},
    "time, pre": {"time_conditioning": True, "norm_position": "pre"},
    "local": {
        "norm_position": "pre", "embedding_norm": True, "positions": "rope",
        "attention": "local", "window": 2, "global_every": 2, "activation": "gelu_tanh",
    },
    "causal": {"attention": "causal", "classes": 3, "remat": "dots"},
    "padded vocabulary": {"attention": "local", "window": 2, "token_types": 0, "vocab_multiple": 8},
    "bfloat16": {"dtype": "bfloat16", "time_conditioning": True, "positions": "rope"},
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name):
    config = dataclasses.replace(tiny.BASE, **NETWORKS[name])
    told = {"label": TOKENS[:, 0]} if config.classes else {}
    told |= {"token_types": TOKENS} if config.token_types else {}
    rows = {"valid": jnp.ones((4, 8), bool), "segment_ids": TOKENS}

    def loss(params):
        denoiser = bert.denoiser(params, config, **told, **rows, dropout_key=KEY)
        return diffusion_loss(denoiser, KEY, TOKENS, mask_id=tiny.MASK)[0]

    params = tiny.params_of(config)
    jax.eval_shape(jax.grad(loss), params)
    for valid in (None, jnp.full(4, 5)):
        jax.eval_shape(
            lambda p, valid=valid: bert.logits(
                p, config, TOKENS, jnp.ones(4), valid=valid, **({} if valid is None else told)
            ),
            params,
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [None, 4])
def test_networks_in_blocks(dtype, window):
    config = dataclasses.replace(tiny.BASE, classes=3, positions="rope", dtype=dtype)
    params, options = tiny.params_of(config), {"label": TOKENS[:, 0], "window": window}
    for valid in (None, jnp.full(4, 5)):

        def loss(params, valid=valid):
            denoiser = bert.block_denoiser(params, config, 2, valid=valid, **options)
            return blocks.loss(denoiser, KEY, TOKENS, mask_id=tiny.MASK)[0]

        jax.eval_shape(jax.grad(loss), params)
    denoiser = bert.block_denoiser(params, config, 2, **options)
    canvas = jnp.full((4, 8), tiny.MASK)
    jax.eval_shape(lambda: blocks.sample(denoiser, KEY, canvas, mask_id=tiny.MASK, steps=3))
    cache, block, where = denoiser.start(4, 8), TOKENS[:, :2], jnp.ones(4, bool)
    jax.eval_shape(lambda: denoiser.extend(cache, block, where))
    jax.eval_shape(lambda: denoiser.advance(cache, block, block, jnp.ones(4), where))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_step(accumulation):
    optimizer, schedule = toy.optimizer()
    step = toy.make_step(
        toy.loss_fn, optimizer, seed=0, ema_decay=0.9, accumulation=accumulation,
        prepare=toy.prepare, schedule=schedule,
    )  # fmt: skip
    jax.eval_shape(step, toy.init_state(toy.params(), optimizer), toy.batch(0))


@pytest.mark.parametrize("kind", ["dual", "vicinity"])
def test_the_encoder_with_a_cache(kind):
    encoder = dataclasses.replace(tiny.BASE, dtype="bfloat16")
    params = tiny.params_of(encoder)
    canvas = CANVAS.at[:, 2:].set(tiny.MASK)

    def drawn(refresh):
        around = {"around": 2} if kind == "vicinity" else {}
        cached = bert.cached_denoiser(params, encoder, kind, 3, refresh, **around)
        return sample(cached, KEY, canvas, mask_id=tiny.MASK, steps=4, blocks=2)

    jax.eval_shape(drawn, jnp.int32(2))
