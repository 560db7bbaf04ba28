"""The state that a run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from mdlm_jax.host import parallel

Array = jax.Array
PyTree = Any


class TrainState(NamedTuple):
    """Everything that a step changes. Noise is a function of seed and step, so no key is kept.

    Attributes:
      step: i32[], steps taken, those with a skipped update included.
      params: the trained parameters.
      opt_state: the optimizer's.
      ema: the exponential moving average of `params`, the same tree.
      bad_steps: i32[], how many updates in a row, up to now, were skipped as non-finite.
    """

    step: Array
    params: PyTree
    opt_state: PyTree
    ema: PyTree
    bad_steps: Array


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, shardings: TrainState | None = None
) -> TrainState:
    """The state before the first step. The arrays are copies: `params` stays the caller's.

    Args:
      params: initial parameters.
      optimizer: from `make_optimizer`.
      shardings: a `TrainState` of shardings, from `state_shardings`; by default JAX's choice.
    """

    def init(params: PyTree) -> TrainState:
        return TrainState(
            step=jnp.int32(0),
            params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params),
            bad_steps=jnp.int32(0),
        )

    return jax.jit(init, out_shardings=shardings)(params)


def state_shardings(
    params_shardings: PyTree, shapes: PyTree, optimizer: optax.GradientTransformation
) -> TrainState:
    """Shardings of each part: moments and EMA are placed as `params`, the rest everywhere.

    Args:
      params_shardings: a tree of `NamedSharding`s, from `parallel.shardings`.
      shapes: the same tree of arrays or `jax.ShapeDtypeStruct`s.
      optimizer: from `make_optimizer`.
    """
    everywhere = parallel.replicated(jax.tree.leaves(params_shardings)[0].mesh)
    return TrainState(
        step=everywhere,
        params=params_shardings,
        opt_state=optax.tree.map_params(
            optimizer,
            lambda leaf, sharding: leaf if _is_masked(leaf) else sharding,
            jax.eval_shape(optimizer.init, shapes),
            params_shardings,
            transform_non_params=lambda _: everywhere,
            is_leaf=_is_masked,
        ),
        ema=params_shardings,
        bad_steps=everywhere,
    )


def _is_masked(leaf: Any) -> bool:
    """Whether it is the place of a frozen parameter, of which the optimizer keeps nothing."""
    return isinstance(leaf, optax.MaskedNode)


def abstract_state(
    shapes: PyTree, optimizer: optax.GradientTransformation, shardings: TrainState
) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s with shardings, to restore a checkpoint into."""
    state = jax.eval_shape(lambda params: init_state(params, optimizer), shapes)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        state,
        shardings,
    )
