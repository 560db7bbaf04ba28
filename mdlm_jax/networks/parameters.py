"""The parameters of BERT as a tree: fresh ones, names of their axes, and parts by name."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.networks.config import Config
from mdlm_jax.networks.encoder import Encoder
from mdlm_jax.networks.layers import Head

Array = jax.Array
PyTree = Any


@partial(jax.jit, static_argnames="config")
def init(key: Array, config: Config) -> PyTree:
    """Fresh parameters, all float32: weights truncated normal, biases 0, norm scales 1.

    To shard them, jit it again with `out_shardings`; then no device holds them whole.
    """
    return nn.meta.unbox(_boxed_params(key, config))


def logical_axes(config: Config) -> PyTree:
    """The tree of `init` with, for each leaf, a tuple naming its axes; computes nothing.

    The names: 'layers' (leading, on every leaf of the blocks), 'vocab', 'positions',
    'token_types', 'classes', 'embed', 'qkv', 'heads', 'head_dim', 'gate_up', 'mlp', 'transform',
    'frequencies', 'condition', 'branches', 'modulation'. No leaf has a name twice.
    """
    boxed = jax.eval_shape(lambda: _boxed_params(jax.random.key(0), config))
    return jax.tree.map(
        lambda box: box.names, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )


def padded_leaves(config: Config) -> tuple[str, ...]:
    """Paths of the parameters that are as long as the padded vocabulary, one row a token."""
    named = _named_leaves(logical_axes(config))
    return tuple(name_of(path) for path, axes in named if axes[0] == "vocab")


def select(config: Config, parts: Sequence[str]) -> PyTree:
    """The tree of `init` with True at the parameters of the parts.

    Args:
      config: of the parameters.
      parts: names of modules ('embeddings', 'blocks', 'head', 'final_norm', 'time', ...), or paths
        below one, such as 'embeddings/positions' or 'blocks/mlp'. The token embeddings are also the
        output layer's matrix.

    Raises:
      ValueError: a name that no parameters have.
    """
    axes = logical_axes(config)
    names = [_part(path) for path, _ in _named_leaves(axes)]
    for part in parts:
        if not any(_lies_in(name, part) for name in names):
            tops = ", ".join(dict.fromkeys(name.partition("/")[0] for name in names))
            raise ValueError(
                f"{part!r} names no parameters: accepted are {tops}, and paths below one of them, "
                "such as blocks/mlp"
            )
    chosen = [any(_lies_in(name, part) for part in parts) for name in names]
    return jax.tree.unflatten(jax.tree.structure(axes, is_leaf=_is_axes), chosen)


def distance_to_head(config: Config) -> PyTree:
    """The tree of `init` with, for each leaf, the number of blocks its gradient passes through.

    It is `layers - i` for block i (from 0), its own counted (an array `[layers, 1, ...]` for the
    stacked leaves), 0 for the head and the final norm, and `layers + 1` for the embeddings and all
    else below the blocks. Powers of it are layer-wise learning rates.
    """

    def distance(path: tuple, axes: tuple) -> np.ndarray:
        if axes[0] == "layers":
            return np.arange(config.layers, 0, -1).reshape(-1, *[1] * (len(axes) - 1))
        above = _part(path).startswith(("head/", "final_"))
        return np.array(0 if above else config.layers + 1)

    return jax.tree.map_with_path(distance, logical_axes(config), is_leaf=_is_axes)


def _is_axes(leaf: Any) -> bool:
    return isinstance(leaf, tuple)


def _named_leaves(axes: PyTree) -> list[tuple[tuple, tuple]]:
    """Path and names of axes of each leaf."""
    return jax.tree.leaves_with_path(axes, is_leaf=_is_axes)


def name_of(path: tuple) -> str:
    """A parameter's path, its parts joined by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _part(path: tuple) -> str:
    """A parameter's path below the encoder, or below the head."""
    return name_of(path).removeprefix("encoder/")


def _lies_in(name: str, part: str) -> bool:
    return name == part or name.startswith(part + "/")


def _boxed_params(key: Array, config: Config) -> PyTree:
    encoder_key, head_key = jax.random.split(key)
    config = dataclasses.replace(config, attention_backend="xla")  # for a row of one token
    tokens, t = jnp.zeros((1, 1), jnp.int32), jnp.zeros(1)
    x = jnp.zeros((1, config.width), config.compute_dtype)
    table = jnp.zeros((config.padded_vocab, config.width))
    with nn.logical_axis_rules(()):  # the axes are only named; the caller places the parameters
        return {
            "encoder": Encoder(config).init(encoder_key, tokens, t)["params"],
            "head": Head(config).init(head_key, x, table, table)["params"],
        }
