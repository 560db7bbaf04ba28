"""Rows of models that see the whole row: `sampling.step`, with what shapes each row beside it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import causal_denoiser, clocks, sampling
from mdlm_jax.diffusion.sampling import SamplingState
from mdlm_jax.runs.sampler import denoiser_of
from mdlm_jax.serving import given, row_options
from mdlm_jax.serving.given import Given
from mdlm_jax.serving.kinds import Kind, Seen
from mdlm_jax.serving.row_options import Options

Array = jax.Array
PyTree = Any


class Rows(NamedTuple):
    """The rows of all slots.

    Attributes:
      state: of the sampler.
      options: what shapes each row.
    """

    state: SamplingState
    options: Options


def begun(kind: Kind, params: PyTree, told: Given) -> Rows:
    """Rows that nothing has been written in yet."""
    del params
    state = sampling.start(
        kind.strategy_of(told.numbers),
        told.tokens,
        told.keys,
        mask_id=kind.mask_id,
        steps=told.whole["steps"],
        fill=told.fill,
        maskable=told.maskable,
        blocks=told.whole["blocks"],
        end_id=told.whole["end_id"],
        pad_id=told.whole["pad_id"],
    )
    return Rows(state, row_options.of_given(told))


def admitted(kind: Kind, params: PyTree, rows: Rows, told: Given) -> Rows:
    """The rows with those that are admitted in their slots, and without those that are stopped."""
    rows = clocks.choose(told.action == given.ADMIT, begun(kind, params, told), rows)
    done = rows.state.done | (told.action == given.STOP)
    return rows._replace(state=rows.state._replace(done=done))


def stepper(kind: Kind, params: PyTree, rows: Rows, forbidden: Array) -> Callable[[Rows], Rows]:
    """One evaluation of all rows that are not done, as a function of the rows.

    What depends on the parameters and on the options is computed here, once for many steps.
    """
    options = rows.options
    batch = row_options.batch_of(options, padded=kind.padded, labelled=kind.labelled)
    weight = options.guidance if kind.guided else None
    denoiser = denoiser_of(params, kind.encoder, batch, weight)
    if kind.start_id is not None:
        denoiser = causal_denoiser(denoiser, start_id=kind.start_id)
    strategy = kind.strategy_of((0.0,) * kind.numbers)  # the state has the numbers

    def step(rows: Rows) -> Rows:
        state = rows.state
        own = row_options.shaped(denoiser, options, ~state.done, forbidden, state.canvas)
        return rows._replace(state=sampling.step(own, strategy, state, mask_id=kind.mask_id))

    return step


def seen(kind: Kind, rows: Rows) -> Seen:
    """What the host is told."""
    del kind
    state = rows.state
    return Seen(state.canvas, state.step_of, state.log_prob, state.evaluations, state.done)


def done(rows: Rows) -> Array:
    """bool[S], the rows in which nothing more is to be done."""
    return jnp.asarray(rows.state.done)
