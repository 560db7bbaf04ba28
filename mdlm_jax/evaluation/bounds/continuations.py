"""Likelihoods of continuations given their prompts, as multiple-choice questions are scored.

    scored = continuations.log_likelihoods(
        likelihoods.denoiser_of(encoder), params, [(prompt, answer), (prompt, other)],
        mask_id=encoder.mask_id, max_length=encoder.max_length,
        time_conditioning=encoder.time_conditioning, draws=32, seed=0, batch_size=32,
    )
    scored.nats  # f64[2], the smaller, the more likely

A row is a prompt, its continuation, and nothing after that. Only the continuation is ever masked.
"""

import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mdlm_jax.data import progress
from mdlm_jax.diffusion import (
    Denoiser,
    Schedule,
    blocks,
    corrupt_causal,
    noise,
    sample,
    strategies,
)
from mdlm_jax.diffusion.enumeration import enumerated_nelbo
from mdlm_jax.diffusion.objectives import slot_nats
from mdlm_jax.diffusion.schedules import linear
from mdlm_jax.evaluation.bounds import likelihoods
from mdlm_jax.evaluation.bounds.likelihoods import BlockDenoiserOf, DenoiserOf
from mdlm_jax.host import parallel

Array = jax.Array
PyTree = Any
Pair = tuple[Sequence[int], Sequence[int]]  # the ids of a prompt, and of its continuation

_KEPT = 64  # compiled functions of other models, draws, meshes
_SHORTEST = 16  # tokens of the shortest rows that a program is compiled for


class Continuations(NamedTuple):
    """The likelihoods of N continuations, given their prompts.

    Attributes:
      nats: f64[N], an estimate of the NELBO, an upper bound of `-log p(continuation | prompt)`; for
        an autoregressive model `-log p` itself.
      error: f64[N], the standard error of the estimate, from drawing masks; 0 where nothing was
        drawn.
      greedy: bool[N], whether greedy filling gives exactly this continuation; None unless asked
        for.
      cut: i32[N], how many tokens were cut off the start of the prompt, to fit the row.
    """

    nats: np.ndarray
    error: np.ndarray
    greedy: np.ndarray | None
    cut: np.ndarray


def log_likelihoods(
    denoiser_of: DenoiserOf | BlockDenoiserOf,
    params: PyTree,
    pairs: Sequence[Pair],
    *,
    mask_id: int,
    max_length: int,
    time_conditioning: bool,
    draws: int,
    seed: int,
    batch_size: int,
    greedy: bool = False,
    schedule: Schedule = linear(),
    start_id: int | None = None,
    mesh: Mesh | None = None,
    block_size: int | None = None,
) -> Continuations:
    """Scores every pair. The order of the pairs and the batches change rounding alone.

    A continuation of n tokens has `2^n - 1` sets of masks. If these are no more than the draws (up
    to 5 tokens with 32 draws), all of them are evaluated and the bound is exact; for one token it
    is the likelihood itself. Longer continuations are estimated. Their draws are a function of the
    seed and the prompt's tokens, or the continuation's where the prompt is empty. So the candidates
    of one prompt are masked alike, which keeps the noise that they share out of their differences.
    Different prompts are masked independently.

    Rows are padded to 16, 32, 64, ... tokens or `max_length`, and the model does not see the
    padding. A batch is padded to a power of two or to `batch_size` rows. At most two programs are
    compiled for each shape. They are cached: a second call with the same `denoiser_of` does not
    compile. The prompt may be empty. So may the continuation, whose likelihood is then 1.

    Greedy filling writes the most likely token at the most confident position, one token an
    evaluation (`strategies.greedy`). Autoregressive models are filled from left to right.

    Args:
      denoiser_of: builds the denoiser of a batch, which has "tokens" and "valid" [B, L] and "label"
        [B], -1 for none, from the parameters.
      params: of the model.
      pairs: N prompts, each with a continuation.
      mask_id: the mask token. A prompt may hold it: it stands for an unknown token there.
      max_length: tokens of the longest row. A prompt that does not fit loses its start.
      time_conditioning: whether the denoiser uses the time. The bound is then a mean over times
        too, and every continuation is estimated.
      draws: corruptions of each row, at least 2.
      seed: of the draws.
      batch_size: rows at a time, rounded up to a multiple of the mesh's row shards.
      greedy: also fill the continuations greedily, at one network evaluation a token.
      schedule: that the model was trained with; it turns the mask rate into the time.
      start_id: for an autoregressive model, the token before the first; None for masked diffusion.
      mesh: spreads the rows of a batch over its devices.
      block_size: for a model of blocks, whose `denoiser_of` makes denoisers of blocks. Rows are
        whole blocks, and every continuation is estimated, but for blocks of one token. What the
        model sees behind a text is padding when it is scored, and masks when it is filled.

    Raises:
      ValueError: fewer than 2 draws, or a continuation that is longer than a row or holds the mask.
    """
    if draws < 2:
        raise ValueError(f"draws is {draws}, at least 2 are needed for an error")
    for number, (_, continuation) in enumerate(pairs):
        _check(continuation, number, mask_id, max_length)
    few = (draws + 1).bit_length() - 1  # 2^few - 1 <= draws
    if time_conditioning or block_size:
        few = 0
    of_batch = _scorer(
        denoiser_of,
        mask_id=mask_id,
        draws=draws,
        longest=max(few, 1),
        greedy=greedy,
        schedule=schedule,
        start_id=start_id,
        mesh=mesh,
    )
    key = noise.derive(noise.seed_key(seed), "evaluation")
    size = min(batch_size, 1 << max(len(pairs) - 1, 0).bit_length())
    if mesh is not None:
        shards = parallel.row_shards(mesh)
        size = -(-size // shards) * shards
    nats, variance = np.zeros(len(pairs)), np.zeros(len(pairs))
    greedily = np.ones(len(pairs), bool)
    with progress.bar("scoring", len(pairs), "continuations") as advance:
        for indices, batch, drawn in _batches(pairs, max_length, size, few, block_size or 1):
            put = batch if mesh is None else parallel.put_rows(batch, mesh)
            scored = jax.device_get(of_batch(params, key, put, drawn=drawn))
            nats[indices], variance[indices] = (x[: len(indices)] for x in scored[:2])
            if greedy:
                greedily[indices] = scored[2][: len(indices)]
            advance(len(indices))
    return Continuations(
        nats=nats,
        error=np.sqrt(variance),
        greedy=greedily if greedy else None,
        cut=np.array([_cut(*pair, max_length) for pair in pairs], np.int32),
    )


@functools.lru_cache(maxsize=_KEPT)
def _scorer(
    denoiser_of: DenoiserOf | BlockDenoiserOf,
    *,
    mask_id: int,
    draws: int,
    longest: int,
    greedy: bool,
    schedule: Schedule,
    start_id: int | None,
    mesh: Mesh | None,
) -> Callable[..., tuple[Array, Array, Array | None]]:
    """`(params, key, batch, drawn) -> nats f32[B], variance f32[B], bool[B]`, jitted and kept.

    `drawn` says whether the bound is estimated, or else computed over all sets of masks of up to
    `longest` tokens. The last result is None unless greedy filling was asked for.
    """

    @functools.partial(
        jax.jit,
        static_argnames="drawn",
        out_shardings=None if mesh is None else parallel.replicated(mesh),
    )
    def of_batch(params, key, batch, drawn):
        with parallel.use(mesh):
            denoiser = denoiser_of(params, batch)
            in_blocks = isinstance(denoiser, blocks.BlockDenoiser)
            if start_id is not None:
                return _by_chain_rule(denoiser, batch, start_id)
            if drawn or in_blocks:
                likelihood = likelihoods.bound(
                    denoiser, key, batch, mask_id=mask_id, draws=draws, schedule=schedule
                )
                nats, variance = likelihood.nats, likelihood.mc_variance
            else:
                nats = enumerated_nelbo(
                    denoiser,
                    batch["tokens"],
                    mask_id=mask_id,
                    longest=longest,
                    maskable=batch["maskable"],
                )
                variance = jnp.zeros_like(nats)
            if not greedy:
                return nats, variance, None
            if in_blocks:  # its cache knows no padding
                unpadded = denoiser_of(params, {k: v for k, v in batch.items() if k != "valid"})
                return nats, variance, _writes_in_blocks(unpadded, batch, mask_id, schedule)
            return nats, variance, _is_greedy(denoiser, batch, mask_id, schedule)

    return of_batch


def _writes_in_blocks(
    denoiser: blocks.BlockDenoiser, batch: dict[str, Array], mask_id: int, schedule: Schedule
) -> Array:
    """bool[B], whether greedy filling, block by block, gives the continuation."""
    tokens, maskable = batch["tokens"], batch["maskable"]
    filled = blocks.sample(
        denoiser,
        jax.random.key(0),  # greedy filling draws nothing
        jnp.where(maskable | ~batch["valid"], mask_id, tokens),
        mask_id=mask_id,
        steps=denoiser.block_size,
        strategy=strategies.greedy(schedule=schedule),
        fill=maskable,
        rows=batch["rows"],
    )
    return jnp.all((filled == tokens) | ~maskable, axis=1)


def _is_greedy(
    denoiser: Denoiser, batch: dict[str, Array], mask_id: int, schedule: Schedule
) -> Array:
    """bool[B], whether greedy filling gives the row."""
    tokens, maskable = batch["tokens"], batch["maskable"]
    filled = sample(
        denoiser,
        jax.random.key(0),  # greedy filling draws nothing
        jnp.where(maskable, mask_id, tokens),
        mask_id=mask_id,
        steps=maskable.sum(axis=1).max(),
        strategy=strategies.greedy(schedule=schedule),
        maskable=maskable,
        rows=batch["rows"],
    )
    return jnp.all(filled == tokens, axis=1)


def _by_chain_rule(
    denoiser: Denoiser, batch: dict[str, Array], start_id: int
) -> tuple[Array, Array, Array]:
    """`-log p` f32[B], its variance 0 f32[B], and bool[B]: greedy, from left to right."""
    maskable = batch["maskable"]
    corrupted = corrupt_causal(batch["tokens"], start_id=start_id, maskable=maskable)
    slots = slot_nats(denoiser, corrupted, mask_id=None)
    nats = slots.nats.sum(axis=1)
    return nats, jnp.zeros_like(nats), jnp.all(slots.correct | ~maskable, axis=1)


def _batches(
    pairs: Sequence[Pair], max_length: int, size: int, few: int, block_size: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray], bool]]:
    """The pairs' indices and rows, `size` at a time, and whether they have more than `few` tokens.

    Pairs that share a compiled program come together, sorted by the length of the continuation:
    enumeration and greedy filling take as long as the longest row of the batch. A batch that is not
    full is filled up with empty rows.
    """

    def program(index: int) -> tuple[int, bool]:
        prompt, continuation = pairs[index]
        length = min(len(prompt) + len(continuation), max_length)
        padded = _padded_length(length, max_length)
        padded = -(-padded // block_size) * block_size
        return padded, len(continuation) > few

    order = sorted(range(len(pairs)), key=lambda i: (*program(i), len(pairs[i][1]), i))
    for (length, drawn), group in itertools.groupby(order, key=program):
        mine = list(group)
        for first in range(0, len(mine), size):
            indices = mine[first : first + size]
            yield np.array(indices), _batch([pairs[i] for i in indices], length, size), drawn


def _batch(pairs: Sequence[Pair], length: int, size: int) -> dict[str, np.ndarray]:
    batch = {
        "tokens": np.zeros((size, length), np.int32),
        "valid": np.zeros((size, length), bool),
        "maskable": np.zeros((size, length), bool),
        "rows": np.zeros(size, np.int32),
        "label": np.full(size, -1, np.int32),
    }
    for row, (prompt, continuation) in enumerate(pairs):
        kept = prompt[_cut(prompt, continuation, length) :]
        end = len(kept) + len(continuation)
        batch["tokens"][row, :end] = [*kept, *continuation]
        batch["valid"][row, :end] = True
        batch["maskable"][row, len(kept) : end] = True
        batch["rows"][row] = _number(prompt if len(prompt) else continuation)
    return batch


def _number(ids: Sequence[int]) -> int:
    """The number that a row's noise is drawn by, in [0, 2^31): equal for equal ids."""
    return zlib.crc32(np.asarray(ids, np.int32).tobytes()) >> 1


def _cut(prompt: Sequence[int], continuation: Sequence[int], length: int) -> int:
    return max(0, len(prompt) + len(continuation) - length)


def _padded_length(length: int, longest: int) -> int:
    return min(max(_SHORTEST, 1 << (length - 1).bit_length()), longest)


def _check(continuation: Sequence[int], number: int, mask_id: int, max_length: int) -> None:
    if len(continuation) > max_length:
        raise ValueError(
            f"continuation {number} has {len(continuation)} tokens, a row has {max_length}"
        )
    if mask_id in continuation:
        raise ValueError(
            f"continuation {number} holds the mask ({mask_id}), which is no text: only a prompt may"
        )
