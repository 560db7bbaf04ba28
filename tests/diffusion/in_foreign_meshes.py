"""The pure functions on four devices of a program's own mesh, run by test_foreign_meshes.py.

Prints JSON: of each function what it is in a `shard_map` that checks, and over explicit axes.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mdlm_jax import as_denoiser, blocks, corrupted_loss, diffusion_loss, mlm_loss, nelbo, sample
from mdlm_jax import strategies as s
from mdlm_jax.diffusion import noise
from mdlm_jax.diffusion.enumeration import enumerated_nelbo
from mdlm_jax.diffusion.integrand import at_rate
from mdlm_jax.diffusion.processes.causal import causal_likelihood, corrupt_causal
from mdlm_jax.networks import bert
from mdlm_jax.networks.config import Config

B, L, V, MASK = 8, 4, 8, 7
MESH = jax.make_mesh((4,), ("parts",), axis_types=(jax.sharding.AxisType.Auto,))
EXPLICIT = jax.make_mesh((4,), ("parts",))
SPLIT, WHOLE = PartitionSpec("parts"), PartitionSpec()
CONFIG = Config(vocab_size=V, mask_id=MASK, layers=1, width=8, heads=1, max_length=L)

KEY = jax.random.key(5)
TOKENS = jax.random.randint(jax.random.key(2), (B, L), 0, MASK)
ROWS = jnp.arange(B)
DATA = (TOKENS, ROWS, noise.row_keys(KEY, ROWS))  # what is split
TABLE = jax.random.normal(jax.random.key(1), (V, V))
PARAMS = bert.init(jax.random.key(0), CONFIG)


def of_table(table):
    return as_denoiser(lambda tokens, t: table[jnp.roll(tokens, 1, axis=1)], MASK)


def of_blocks(table):
    """Of two tokens each: by what stands there, and by the clean token before the block."""

    def logits(noisy, clean, t):
        first = jnp.arange(L) // 2 * 2
        return table[noisy] + table[jnp.where(first > 0, clean[:, first - 1], 0)]

    return blocks.as_block_denoiser(logits, 2, MASK)


def of_network(params):
    return bert.denoiser(params, CONFIG)


def loss_of(loss):
    """The loss and its gradient; rows are alike enough that shards' means make the mean."""
    return lambda weights, *data: jax.value_and_grad(lambda w: loss(w, *data)[0])(weights)


def written(strategy, **options):
    """Half of each row is to be filled, all random numbers from one key a row."""

    def write(table, tokens, rows, keys):
        canvas = jnp.where(jnp.arange(L)[None] % 2 == 0, MASK, tokens)
        given = {"keys": keys, "strategy": strategy, "mask_id": MASK, "steps": 2, "trace": True}
        return sample(of_table(table), None, canvas, **given, **options)

    return write


def written_in_blocks(table, tokens, rows, keys):
    """As `written`, in blocks, until the end of text."""
    canvas = jnp.where(jnp.arange(L)[None] % 2 == 0, MASK, tokens)
    given = {"keys": keys, "mask_id": MASK, "steps": 2, "end_id": 3, "trace": True}
    return blocks.sample(of_blocks(table), None, canvas, **given)


# Of (weights, tokens, rows, keys): losses with their gradients, and what there is of each row.
LOSSES = {
    "diffusion_loss": (
        TABLE,
        lambda w, x, rows, keys: diffusion_loss(
            of_table(w), KEY, x, mask_id=MASK, rows=rows, paired=True
        ),
    ),
    "blocks.loss": (
        TABLE,
        lambda w, x, rows, keys: blocks.loss(of_blocks(w), KEY, x, mask_id=MASK, rows=rows),
    ),
    "autoregressive loss": (
        TABLE,
        lambda w, x, rows, keys: corrupted_loss(of_table(w), corrupt_causal(x, start_id=0)),
    ),
    "bert, mlm_loss": (
        PARAMS,
        lambda w, x, rows, keys: mlm_loss(
            of_network(w), None, x, mask_id=MASK, keys=keys, rate=0.5
        ),
    ),
}
BY_ROW = {
    "nelbo": (
        TABLE,
        lambda w, x, rows, keys: nelbo(of_table(w), KEY, x, mask_id=MASK, rows=rows, draws=4),
    ),
    "enumerated_nelbo": (
        TABLE,
        lambda w, x, rows, keys: enumerated_nelbo(of_table(w), x, mask_id=MASK, longest=L),
    ),
    "blocks.nelbo": (
        TABLE,
        lambda w, x, rows, keys: blocks.nelbo(
            of_blocks(w), None, x, mask_id=MASK, keys=keys, draws=4
        ),
    ),
    "blocks.nelbo, all": (
        TABLE,
        lambda w, x, rows, keys: blocks.nelbo(of_blocks(w), None, x, mask_id=MASK, draws="all"),
    ),
    "at_rate": (
        TABLE,
        lambda w, x, rows, keys: at_rate(of_table(w), KEY, x, mask_id=MASK, rows=rows, rate=0.5)[
            :2
        ],
    ),
    "causal_likelihood": (
        TABLE,
        lambda w, x, rows, keys: causal_likelihood(of_table(w), x, start_id=0),
    ),
    "bert, logits": (PARAMS, lambda w, x, rows, keys: bert.logits(w, CONFIG, x)),
    "sample, exact_count": (TABLE, written(s.exact_count(), blocks=2, end_id=3)),
    "sample, path_planning": (TABLE, written(s.path_planning())),
    "blocks.sample": (TABLE, written_in_blocks),
}


def same(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in leaves)


def in_shards(function, weights, a_loss):
    """The function of two rows a device, its losses averaged."""

    def of_shard(weights, *data):
        out = function(weights, *data)
        if not a_loss:
            return out
        loss, gradient = out  # which JAX has summed over the devices
        return jax.lax.pmean(loss, "parts"), jax.tree.map(lambda x: x / 4, gradient)

    specs = (WHOLE, SPLIT, SPLIT, SPLIT)
    spread = jax.shard_map(
        of_shard, mesh=MESH, in_specs=specs, out_specs=WHOLE if a_loss else SPLIT
    )
    return jax.jit(spread)(weights, *DATA)


def over_explicit_axes(function, weights):
    """What is refused, as a sentence."""
    placed = [jax.device_put(x, NamedSharding(EXPLICIT, SPLIT)) for x in DATA]
    weights = jax.device_put(weights, NamedSharding(EXPLICIT, WHOLE))
    try:
        jax.eval_shape(function, weights, *placed)
    except ValueError as error:
        return str(error)
    return "not refused"


def by_auto_axes(function, weights):
    """The cure that the refusal names."""
    placed = [jax.device_put(x, NamedSharding(EXPLICIT, SPLIT)) for x in DATA]
    weights = jax.device_put(weights, NamedSharding(EXPLICIT, WHOLE))
    with jax.set_mesh(EXPLICIT):
        return jax.jit(jax.sharding.auto_axes(function, out_sharding=SPLIT))(weights, *placed)


if __name__ == "__main__":
    told = {}
    for name, (weights, function) in (LOSSES | BY_ROW).items():
        a_loss = name in LOSSES
        function = loss_of(function) if a_loss else function
        whole = jax.jit(function)(weights, *DATA)
        told[name] = {
            "same in shards": same(whole, in_shards(function, weights, a_loss)),
            "over explicit axes": over_explicit_axes(function, weights),
        }
        if name in ("at_rate", "bert, logits"):
            told[name]["same by auto_axes"] = same(whole, by_auto_axes(function, weights))
    print(json.dumps(told))
