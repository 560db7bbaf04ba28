"""Rows of models of whole rows: `sampling.step`, with what shapes each row beside it.

A causal model, which is one of these, remembers what it computed of the beginning of each row.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import Denoiser, clocks, sampling
from mdlm_jax.diffusion.caching import CachedDenoiser, transformed
from mdlm_jax.diffusion.sampling import SamplingState
from mdlm_jax.runs.sampler import causal_denoiser_of, chunk_of, denoiser_of
from mdlm_jax.serving.rows import given, row_options
from mdlm_jax.serving.rows.given import Given
from mdlm_jax.serving.rows.kinds import Kind, Seen
from mdlm_jax.serving.rows.row_options import Options

Array = jax.Array
PyTree = Any


class Rows(NamedTuple):
    """The rows of all slots.

    Attributes:
      state: of the sampler.
      options: what shapes each row.
      memory: of a causal model; else nothing.
    """

    state: SamplingState
    options: Options
    memory: PyTree = ()


def begun(kind: Kind, params: PyTree, told: Given) -> Rows:
    """Rows that nothing has been written in yet."""
    options = row_options.of_given(told)
    memory: PyTree = ()
    if kind.start_id is not None:
        memory = _causal(kind, params, options).start(kind.slots, kind.length)
    return Rows(_started(kind, told), options, memory)


def admitted(kind: Kind, params: PyTree, rows: Rows, told: Given) -> Rows:
    """The rows with those that are admitted in their slots, and without those that are stopped."""
    new = told.action == given.ADMIT
    own = (_started(kind, told), row_options.of_given(told))
    state, options = clocks.choose(new, own, (rows.state, rows.options))
    memory = rows.memory
    if kind.start_id is not None:
        memory = _causal(kind, params, options).clear(memory, new)
    done = state.done | (told.action == given.STOP)
    return Rows(state._replace(done=done), options, memory)


def stepper(kind: Kind, params: PyTree, rows: Rows, forbidden: Array) -> Callable[[Rows], Rows]:
    """One evaluation of all rows that are not done, as a function of the rows.

    What depends on the parameters and on the options is computed here, once for many steps.
    """
    options = rows.options
    strategy = kind.strategy_of((0.0,) * kind.numbers)  # the state has the numbers
    rest = {"strategy": strategy, "mask_id": kind.mask_id}

    def shaped(denoiser: Denoiser, state: SamplingState) -> Denoiser:
        return row_options.shaped(denoiser, options, ~state.done, forbidden, state.canvas)

    if kind.start_id is None:
        whole = _denoiser(kind, params, options)

        def step(rows: Rows) -> Rows:
            own = shaped(whole, rows.state)
            return rows._replace(state=sampling.step(own, state=rows.state, **rest))

        return step

    causal = _causal(kind, params, options)

    def step_of_causal(rows: Rows) -> Rows:
        own = transformed(causal, lambda one: shaped(one, rows.state))
        state, memory = sampling.step_with(
            own.encode,
            own,
            state=rows.state,
            memory=rows.memory,
            chunk=chunk_of(strategy, kind.slots),
            **rest,
        )
        return Rows(state, options, memory)

    return step_of_causal


def seen(kind: Kind, rows: Rows) -> Seen:
    """What the host is told."""
    del kind
    state = rows.state
    return Seen(state.canvas, state.step_of, state.log_prob, state.evaluations, state.done)


def done(rows: Rows) -> Array:
    """bool[S], the rows in which nothing more is to be done."""
    return jnp.asarray(rows.state.done)


def _started(kind: Kind, told: Given) -> SamplingState:
    return sampling.start(
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


def _denoiser(kind: Kind, params: PyTree, options: Options) -> Denoiser:
    batch = row_options.batch_of(options, padded=kind.padded, labelled=kind.labelled)
    return denoiser_of(params, kind.encoder, batch, options.guidance if kind.guided else None)


def _causal(kind: Kind, params: PyTree, options: Options) -> CachedDenoiser:
    batch = row_options.batch_of(options, padded=kind.padded, labelled=kind.labelled)
    weight = options.guidance if kind.guided else None
    return causal_denoiser_of(params, kind.encoder, batch, kind.start_id, weight)
