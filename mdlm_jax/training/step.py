"""One training step: gradients summed over microbatches, an update, a moving average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdlm_jax.diffusion import noise
from mdlm_jax.host import parallel
from mdlm_jax.training.state import TrainState

Array = jax.Array
PyTree = Any
LossFn = Callable[[PyTree, Array, PyTree], tuple[Array, PyTree]]


def make_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema_decay: float,
    accumulation: int = 1,
    prepare: Callable[[Array, Array, PyTree], PyTree] | None = None,
    schedule: optax.Schedule | None = None,
    shardings: TrainState | None = None,
) -> Callable[[TrainState, PyTree], tuple[TrainState, dict[str, Any]]]:
    """Makes `step(state, batch) -> (state, metrics)`, jitted; the old state is donated.

    A step whose loss or gradient is not finite leaves params, opt_state and ema as they were and
    adds one to `bad_steps`, which a good step sets to 0; `step` advances in both cases.

    The moving average follows `ema += (1 - d) (params - ema)` with
    `d = min(ema_decay, (1 + step) / (10 + step))`, as `num_updates` does in TensorFlow's
    `ExponentialMovingAverage`, so that early averages are not the initial parameters.

    Args:
      loss_fn: `(params, key, microbatch) -> (loss f32[], aux)`, the microbatch's SHARE of the loss
        and of each array in `aux`: shares and their gradients are summed, so the loss must be
        normalised by counts of the whole batch. The key (for dropout) differs by microbatch.
      optimizer: from `make_optimizer`.
      seed: all randomness is a function of it and of the step.
      ema_decay: in [0, 1); 0 keeps a plain copy of the parameters.
      accumulation: microbatches a step; every leaf of the batch is split along its leading axis,
        neighbouring rows together. Leaves may differ in it (rows, pairs of rows).
      prepare: `(key, step i32[], batch) -> batch`, run once on the whole batch: what is drawn here
        does not depend on `accumulation`. The key is the step's, from which `noise.derive` makes
        one for each purpose but "dropout". The step, from 0, serves what changes along a run.
      schedule: from `make_optimizer`; adds the update's `learning_rate` to the metrics.
      shardings: from `state_shardings`; the state stays where it is, batches (and microbatches)
        are split along their rows over the mesh.

    Returns:
      The step. Its metrics are `loss`, `grad_norm` (before clipping), `bad_steps`, `aux`, and
      `learning_rate` with a schedule.

    Raises:
      ValueError: if `ema_decay` or `accumulation` is out of range; when the step is traced, if
        a leading axis does not split.
    """
    if not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must lie in [0, 1), not {ema_decay!r}")
    if accumulation < 1:
        raise ValueError(f"accumulation must be at least 1, not {accumulation!r}")
    mesh = None if shardings is None else shardings.step.mesh
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Any]]:
        with parallel.use(mesh):
            return advance(state, batch)

    def advance(state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Any]]:
        of_step = noise.derive(noise.seed_key(seed), "training", state.step)
        if prepare is not None:
            batch = prepare(of_step, state.step, batch)

        def share(index: Array | int, microbatch: PyTree) -> PyTree:
            key = noise.derive(of_step, "dropout", index)
            outputs, grads = value_and_grad(state.params, key, microbatch)
            if mesh is not None:
                # Without this, XLA may sum whole gradients on every device of `fsdp`.
                grads = jax.lax.with_sharding_constraint(grads, shardings.params)
            return outputs, grads

        if accumulation == 1:
            (loss, aux), grads = share(0, batch)
        else:
            (loss, aux), grads = _sum_over(share, split_batch(batch, accumulation, mesh))

        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        metrics = {"loss": loss, "grad_norm": grad_norm, "aux": aux}
        if schedule is not None:
            # The optimizer counts updates: after a skipped one it is behind `state.step`.
            count = optax.tree.get(state.opt_state, "ScaleByScheduleState").count
            with _promoting():
                metrics["learning_rate"] = jnp.asarray(schedule(count), jnp.float32)

        with _promoting():
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # 1 - (1 + step) / (10 + step) = 9 / (10 + step), without the cancellation.
        step_size = jnp.maximum(1 - ema_decay, 9.0 / (10.0 + state.step.astype(jnp.float32)))
        ema = optax.incremental_update(params, state.ema, step_size)

        params, opt_state, ema = optax.tree.where(
            good,
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        bad_steps = jnp.where(good, 0, state.bad_steps + 1)
        new = TrainState(state.step + 1, params, opt_state, ema, bad_steps)
        return new, {**metrics, "bad_steps": bad_steps}

    if mesh is None:
        return jax.jit(step, donate_argnums=0)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, parallel.batch_sharding(mesh)),
        out_shardings=(shardings, parallel.replicated(mesh)),
    )


def _promoting():
    """Allows promotion within optax, which multiplies floats by counts, under strict switches."""
    return jax.numpy_dtype_promotion("standard")


def split_batch(batch: PyTree, accumulation: int, mesh: Mesh | None = None) -> PyTree:
    """Splits every leaf `[n, ...]` into `[accumulation, n / accumulation, ...]`.

    Args:
      batch: leaves with a leading axis.
      accumulation: number of parts.
      mesh: where given, the rows of each part are spread over it, as those of a batch are.

    Raises:
      ValueError: if a leading axis does not divide.
    """

    def split(path: tuple, leaf: Array) -> Array:
        if leaf.ndim == 0 or leaf.shape[0] % accumulation:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} of shape {leaf.shape} cannot be split into "
                f"{accumulation} microbatches along its leading axis"
            )
        parts = leaf.reshape(accumulation, -1, *leaf.shape[1:])  # [A, n / A, ...]
        if mesh is None:
            return parts
        # Without this a microbatch would lie on the few devices that held its rows.
        rows = parallel.batch_sharding(mesh).spec
        shards = parallel.row_shards(mesh)
        if parts.shape[1] % shards:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} of shape {leaf.shape} gives {accumulation} "
                f"microbatches of {parts.shape[1]}, which {shards} devices cannot share evenly"
            )
        sharding = NamedSharding(mesh, PartitionSpec(None, *rows))
        return jax.lax.with_sharding_constraint(parts, sharding)

    return jax.tree.map_with_path(split, batch)


def _sum_over(fn: Callable[[Array, PyTree], PyTree], microbatches: PyTree) -> PyTree:
    """The sum of `fn(i, microbatch i)`, one microbatch in memory at a time."""
    first = jax.tree.map(lambda leaf: leaf[0], microbatches)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, 0, first))
    count = jax.tree.leaves(microbatches)[0].shape[0]

    def add(total: PyTree, part: tuple[Array, PyTree]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, fn(*part)), None

    return jax.lax.scan(add, zeros, (jnp.arange(count), microbatches))[0]
