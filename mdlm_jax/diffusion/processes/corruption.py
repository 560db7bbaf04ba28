"""Corruption: from tokens to a canvas with masks and the positions to be predicted.

Pairs. Two neighbouring rows share one u, and mask `k_a = ceil(u L_a)` and `k_b = L_b + 1 - ceil(u
L_b)` tokens. Each count is uniform, and their sum is at most `max(L_a, L_b) + 1`. So the masked
tokens of a pair fit into `L + 1` slots, and the vocabulary projection does half the work of two
rows.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion import checks, noise
from mdlm_jax.diffusion.processes.masks import (
    Masks,
    bernoulli_masks,
    exact_masks,
    maskable_of,
    share_counts,
    share_masks,
)
from mdlm_jax.diffusion.schedules import Schedule, check_schedule, linear

Array = jax.Array


class Corrupted(NamedTuple):
    """A corrupted batch. Groups are single rows (G = B), pairs of neighbours (G = B / 2), or more.

    Every leaf's leading axis runs along the rows, so a batch can be cut into microbatches.

    Attributes:
      canvas: i32[B, L], the tokens with some replaced.
      t: f32[B], the denoiser's time.
      rate: f32[B], the share of the row's maskable tokens that is to be predicted.
      positions: i32[G, C], where the slots' tokens are, in the group's rows laid end to end.
      targets: i32[G, C], the clean tokens there.
      weights: f32[G, C], each token's weight in the loss, 0 in an empty slot.
    """

    canvas: Array
    t: Array
    rate: Array
    positions: Array
    targets: Array
    weights: Array


def corrupt(
    key: Array | None,
    tokens: Array,
    *,
    mask_id: int,
    schedule: Schedule = linear(),
    corruption: Literal["exact", "bernoulli"] = "exact",
    max_rate: Array | float = 1.0,
    maskable: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
    paired: bool | None = None,
) -> Corrupted:
    """Draws the masks of a whole batch, once.

    If a batch is cut up before it comes here (`shard_map`, `vmap`, several calls), each part draws
    the same noise from the same key: give `rows`, or `keys`.

    Args:
      key: of this step; the noise of a row is a function of (key, its number in `rows`). None
        beside `keys`.
      tokens: i32[B, L], clean.
      mask_id: the mask token.
      schedule: turns the mask rate into the time; with Bernoulli masking it is also the law of the
        rate.
      corruption: "exact" draws how many tokens are masked, uniformly; "bernoulli" draws t
        uniformly and masks each token alone.
      max_rate: r in (0, 1], for exact counts. A row of L maskable tokens has k of them masked, with
        k uniform on {1..K} and `K = max(1, ceil(r L))` (15 for 0.15 and 100). The loss is
        `L E[S_k / k]` over these k, the NELBO's integrand averaged over the rates up to r. Only
        r = 1 gives the NELBO. It may be traced: a curriculum is a function of the step.
      maskable: bool[B, L], which tokens may be masked and count; default all but `mask_id`, which
        never is (see `maskable_of`).
      rows: i32[B], the rows' numbers in the global batch; default 0..B-1. Counts (or times) are
        spread evenly over them.
      keys: [B], one a row, instead of `key` and `rows`: a row's noise is a function of its key.
        Each count is then drawn alone and not spread over the batch.
      paired: whether rows 2i and 2i + 1 share slots, which saves half the projection. By default
        they do with exact counts if B is even and the rows are known to be neighbours in the global
        batch. It must be given for `rows` that are traced; the masks are the same if they are
        neighbours. For other rows, or with `keys`, the second row of a pair takes its count from
        the first one's draw.

    Raises:
      ValueError: on shapes or names that do not fit; on a `max_rate` that is out of its range, or
        not 1 with Bernoulli masking; and, if they are known, on a mask among the maskable tokens,
        on `paired` rows that are no neighbours, and on one key for a part of a batch (see
        `keys_of_rows`).
      TypeError: on a list for an array, a seed for a key, a schedule that was not called.
    """
    check_schedule(schedule)
    maskable = maskable_of(tokens, mask_id, maskable)
    of_rows = noise.keys_of_rows(key, keys, rows, tokens)
    if corruption not in ("exact", "bernoulli"):
        raise ValueError(f"corruption is {corruption!r}, it must be 'exact' or 'bernoulli'")
    exact = corruption == "exact"
    _check_max_rate(max_rate, exact)
    batch = tokens.shape[0]
    if paired and not (exact and batch % 2 == 0):
        raise ValueError(
            f"paired rows need exact counts and an even batch, not {corruption!r} and {batch} rows"
        )
    paired = _are_paired(paired, rows, keys, batch) if exact and batch % 2 == 0 else False

    numbers = jnp.arange(batch) if rows is None else rows
    if keys is not None:
        numbers = jnp.zeros_like(numbers)  # a row's place does not matter
    placing = noise.derive(of_rows, "place")
    if exact:
        u, side = _uniform(key, keys, numbers // 2), numbers  # one u for each pair
        if paired and not (rows is None and keys is None):
            # The two must fit their slots, whatever the second row is.
            u = jnp.repeat(u.reshape(-1, 2)[:, 0], 2)
            side = (side.reshape(-1, 2)[:, :1] + jnp.arange(2)[None]).reshape(-1)
        masks = exact_masks(
            placing, u, side, maskable=maskable, schedule=schedule, max_rate=max_rate
        )
    else:
        t = 1.0 - _uniform(key, keys, numbers)  # (0, 1], where the weight is finite
        masks = bernoulli_masks(placing, t, maskable=maskable, schedule=schedule)
    return lay_out(
        tokens,
        jnp.where(masks.selected, mask_id, tokens),
        masks._replace(
            weight=masks.weight / jnp.maximum(masks.length.sum(), 1).astype(jnp.float32)
        ),
        slots=tokens.shape[1] + int(paired),
        paired=paired,
    )


def corrupt_mlm(
    key: Array | None,
    tokens: Array,
    *,
    mask_id: int,
    vocab_size: int,
    rate: float = 0.15,
    mask_share: float = 0.8,
    random_share: float = 0.1,
    maskable: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
) -> Corrupted:
    """BERT's corruption (Devlin et al. 2019, section 3.1): a fixed share of each row is selected.

    `max(1, round(rate * L))` of a row's L maskable tokens are selected. A share `mask_share` of
    these becomes the mask, a share `random_share` becomes a uniformly random token other than the
    mask, and the rest stays. The weights make the loss the mean nats per selected token.

    Args:
      key: as in `corrupt`.
      tokens: i32[B, L], clean.
      mask_id: the mask token.
      vocab_size: V; random tokens and the mask are below it.
      rate: share of the maskable tokens that is selected.
      mask_share: share of the selected tokens that becomes the mask.
      random_share: share of the selected tokens that becomes a random token.
      maskable: bool[B, L], as in `corrupt`.
      rows: i32[B], as in `corrupt`.
      keys: [B], as in `corrupt`.

    Raises:
      ValueError: on shapes or shares that do not fit, on a mask that is not in the vocabulary, and
        as `corrupt`.
      TypeError: as `corrupt`.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"mlm: rate is {rate}, it must be in (0, 1]")
    if min(mask_share, random_share) < 0 or mask_share + random_share > 1 + 1e-9:
        raise ValueError(
            f"mlm: mask_share is {mask_share} and random_share {random_share}, "
            "they must not be negative and must sum to 1 at most"
        )
    maskable = maskable_of(tokens, mask_id, maskable)
    seen = checks.known(mask_id)
    if seen is not None and seen >= vocab_size:
        raise ValueError(f"mlm: mask_id is {mask_id}, it must be below vocab_size, {vocab_size}")
    of_rows = noise.keys_of_rows(key, keys, rows, tokens)
    width = tokens.shape[1]
    placing, fates, others = (noise.derive(of_rows, name) for name in ("place", "fate", "other"))
    masks = share_masks(placing, rate, maskable=maskable)

    other = (noise.row_uniform(others, width) * (vocab_size - 1)).astype(jnp.int32)
    other = jnp.minimum(other, vocab_size - 2)  # the product may round up
    other = other + (other >= mask_id).astype(
        jnp.int32
    )  # uniform on the vocabulary without the mask
    fate = noise.row_uniform(fates, width)
    replaced = jnp.where(fate < mask_share, mask_id, other)
    changed = masks.selected & (fate < mask_share + random_share)
    return lay_out(
        tokens,
        jnp.where(changed, replaced, tokens),
        masks._replace(weight=masks.weight / jnp.maximum(masks.count.sum(), 1).astype(jnp.float32)),
        slots=int(share_counts(rate, width)[-1]),
        paired=False,
    )


def lay_out(tokens: Array, canvas: Array, masks: Masks, *, slots: int, paired: bool) -> Corrupted:
    """Lays the masked tokens of each group into its slots, the first row's before the second's.

    Args:
      tokens: i32[B, L], clean.
      canvas: i32[B, L], corrupted.
      masks: of the rows, with the weights that the loss gets.
      slots: C, the slots of each group; enough for what the group masks.
      paired: whether a group is two rows or one.
    """
    batch, width = tokens.shape
    group = 2 if paired else 1
    order = masks.order.reshape(batch // group, group, width)
    count, weight = (x.reshape(-1, group, 1) for x in (masks.count, masks.weight))  # [G, 1|2, 1]
    slot = jnp.arange(slots)[None, :]  # [1, C]
    if paired:
        in_first = slot < count[:, 0]  # [G, C]
        in_second = jnp.clip(slot - count[:, 0], 0, width - 1)
        second = width + jnp.take_along_axis(order[:, 1], in_second, axis=1)
        first = jnp.pad(order[:, 0], ((0, 0), (0, slots - width)))
        positions = jnp.where(in_first, first, second)
        weights = jnp.where(in_first, weight[:, 0], weight[:, 1])
    else:
        positions, weights = order[:, 0, :slots], weight[:, 0]
    return Corrupted(
        canvas=canvas,
        t=masks.t,
        rate=masks.count / jnp.maximum(masks.length, 1),
        positions=positions,
        targets=jnp.take_along_axis(tokens.reshape(batch // group, -1), positions, axis=1),
        weights=jnp.where(slot < count.sum(axis=1), weights, 0.0),
    )


def laid_together(corrupted: Corrupted, count: int) -> Corrupted:
    """The slots of `count` neighbouring groups as one group's, so that they are padded once.

    Small groups need it: a reading of slots rounds their number up.
    """
    groups = corrupted.positions.shape[0]
    span = corrupted.canvas.size // groups  # positions of a group
    first = span * jnp.arange(count, dtype=jnp.int32)[None, :, None]  # of each group in the larger
    positions = corrupted.positions.reshape(groups // count, count, -1) + first
    joined = (
        x.reshape(groups // count, -1) for x in (positions, corrupted.targets, corrupted.weights)
    )
    return Corrupted(corrupted.canvas, corrupted.t, corrupted.rate, *joined)


def _uniform(key: Array | None, keys: Array | None, index: Array) -> Array:
    """`f32[B]` on [0, 1): spread over `index` with one key, each row's own with keys."""
    if key is not None:
        return noise.stratified(noise.derive(key, "spread"), index)
    assert keys is not None  # `noise.keys_of_rows` has refused neither
    return noise.row_uniform(noise.derive(keys, "spread"), 1)[:, 0]


def _are_paired(paired: bool | None, rows: Array | None, keys: Array | None, batch: int) -> bool:
    """Whether rows 2i and 2i + 1 of an even batch share slots."""
    if paired is False or rows is None:
        return (keys is None) if paired is None else paired
    seen = checks.known(rows)
    if seen is None:
        if paired is None:
            raise ValueError(
                "rows are traced, and cannot be seen to be neighbours: say paired=True if rows 2i "
                "and 2i + 1 are, which saves half the projection, or paired=False"
            )
        return paired
    pairs = seen.reshape(batch // 2, 2)
    neighbours = bool(np.all(pairs[:, 0] ^ 1 == pairs[:, 1]))
    if paired and not neighbours:
        raise ValueError(
            f"paired rows must be neighbours, 2i and 2i + 1, not {pairs[0].tolist()} and so on"
        )
    return neighbours


def _check_max_rate(max_rate: Array | float, exact: bool) -> None:
    seen = checks.known(max_rate)
    if seen is not None and not 0 < seen <= 1:
        raise ValueError(f"max_rate is {max_rate}, it must be in (0, 1]")
    if not exact and not (seen is not None and seen == 1):
        raise ValueError("max_rate bounds exact counts: with corruption='bernoulli' it must be 1")
