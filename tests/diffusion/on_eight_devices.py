"""The loss and the sampler on eight devices, run by test_collectives.py; prints JSON."""

import json
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mdlm_jax import as_denoiser, blocks, corrupt, corrupted_loss, sample, strategies

LENGTH, VOCABULARY = 16, 32
MESH = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
COLLECTIVE = re.compile(
    r" (all-gather|all-to-all|collective-permute|reduce-scatter|all-reduce)(?:-start)?\("
)


def collectives(rows, paired):
    """The kinds of collective in the compiled loss and its gradient."""

    def loss(table, tokens):
        corrupted = corrupt(jax.random.key(0), tokens, mask_id=0, paired=paired)
        denoiser = as_denoiser(lambda tokens, t: table[tokens], mask_id=0)
        return corrupted_loss(denoiser, corrupted)[0]

    return of_loss(loss, rows)


def of_blocks(rows, size):
    """The same of the loss over blocks."""

    def loss(table, tokens):
        def logits(noisy, clean, t):
            return table[noisy] + table[jnp.roll(clean, size, axis=1)]

        denoiser = blocks.as_block_denoiser(logits, size, mask_id=0)
        return blocks.loss(denoiser, jax.random.key(0), tokens, mask_id=0)[0]

    return of_loss(loss, rows)


def of_loss(loss, rows):
    whole, split = (NamedSharding(MESH, PartitionSpec(*axes)) for axes in ((), ("data",)))
    step = jax.jit(jax.value_and_grad(loss), in_shardings=(whole, split), out_shardings=whole)
    table = jax.ShapeDtypeStruct((VOCABULARY, VOCABULARY), jnp.float32)
    tokens = jax.ShapeDtypeStruct((rows, LENGTH), jnp.int32)
    return kinds(step.lower(table, tokens).compile())


def kinds(compiled):
    """Of the collectives in a compiled program."""
    return sorted(set(COLLECTIVE.findall(compiled.as_text())))


def sampling(strategy, size=None):
    """The collectives of the compiled sampler, and whether it writes what one device does.

    With a size, of blocks.
    """
    table = jax.random.normal(jax.random.key(1), (VOCABULARY, VOCABULARY))
    canvas = jnp.zeros((16, LENGTH), jnp.int32).at[:, ::5].set(7)

    def write(table, canvas):
        if size is not None:

            def logits(noisy, clean, t):
                return table[jnp.roll(noisy, 1, axis=1)] + table[jnp.roll(clean, size, axis=1)]

            return blocks.sample(
                blocks.as_block_denoiser(logits, size, mask_id=0), jax.random.key(2), canvas,
                mask_id=0, steps=2, strategy=strategy, chunk=3,
            )  # fmt: skip
        denoiser = as_denoiser(lambda tokens, t: table[jnp.roll(tokens, 1, axis=1)], mask_id=0)
        return sample(
            denoiser, jax.random.key(2), canvas, mask_id=0, steps=5, strategy=strategy, chunk=3
        )

    whole, split = (NamedSharding(MESH, PartitionSpec(*axes)) for axes in ((), ("data",)))
    alone = jax.jit(write)(table, canvas)
    with jax.sharding.use_abstract_mesh(MESH.abstract_mesh):
        spread = jax.jit(write, in_shardings=(whole, split), out_shardings=split)
        compiled = spread.lower(table, canvas).compile()
    tokens = compiled(jax.device_put(table, whole), jax.device_put(canvas, split))
    return {"collectives": kinds(compiled), "same": bool((tokens == alone).all())}


if __name__ == "__main__":
    told = {"even": collectives(16, True), "odd": collectives(8, True)}
    told["blocks"] = [of_blocks(8, size) for size in (1, 4)]  # a row a device
    told["exact_count"] = sampling(strategies.exact_count())
    told["confidence"] = sampling(strategies.confidence("margin"))
    told["remask"] = sampling(strategies.remask("cap", 0.2))
    told["in blocks"] = sampling(strategies.exact_count(), size=4)
    print(json.dumps(told))
