"""The collectives of the loss on eight devices, run by test_collectives.py; prints them as JSON."""

import json
import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from mdlm_jax import as_denoiser, corrupt, corrupted_loss

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

    whole, split = (NamedSharding(MESH, PartitionSpec(*axes)) for axes in ((), ("data",)))
    step = jax.jit(jax.value_and_grad(loss), in_shardings=(whole, split), out_shardings=whole)
    table = jax.ShapeDtypeStruct((VOCABULARY, VOCABULARY), jnp.float32)
    tokens = jax.ShapeDtypeStruct((rows, LENGTH), jnp.int32)
    text = step.lower(table, tokens).compile().as_text()
    return sorted(set(COLLECTIVE.findall(text)))


if __name__ == "__main__":
    print(json.dumps({"even": collectives(16, True), "odd": collectives(8, True)}))
