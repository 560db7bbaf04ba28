"""Likelihood: denoiser x data -> NELBO with its error."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks, noise
from mdlm_jax.diffusion.denoisers import Denoiser, Hidden
from mdlm_jax.diffusion.objectives import group_nats
from mdlm_jax.diffusion.processes.corruption import lay_out
from mdlm_jax.diffusion.processes.masks import exact_masks, maskable_of, whole_steps
from mdlm_jax.diffusion.schedules import Schedule, check_schedule, linear

Array = jax.Array


class Likelihood(NamedTuple):
    """Each row's `-log p`, or an estimated upper bound of it, with the estimate's variance.

    Attributes:
      nats: f32[B], each row's estimated NELBO; with `causal_likelihood` its exact `-log p`.
      mc_variance: f32[B], the estimate's own variance, from independent replicates within the row;
        0 where nothing was drawn.
      tokens: i32[B], the tokens that count.
    """

    nats: Array
    mc_variance: Array
    tokens: Array

    def __repr__(self) -> str:
        """A sentence with both errors; of what is traced, or not at hand, the plain tuple."""
        if not all(_at_hand(leaf) for leaf in self):
            return f"Likelihood({', '.join(f'{k}={v!r}' for k, v in self._asdict().items())})"
        words = [f"{float(self.nats_per_token):.3f} nats per token"]
        if error := float(self.mc_error):
            words.append(f"+- {error:.2g} (masks)")
        if not math.isnan(error := float(self.text_error)):
            words.append(f"+- {error:.2g} (text)")
        tokens, rows = int(self.tokens.sum()), int((self.tokens > 0).sum())
        return f"{' '.join(words)}, {tokens:,} tokens of {rows:,} row{'' if rows == 1 else 's'}"

    @property
    def nats_per_token(self) -> Array:
        """Of the whole text, per token; 0 if there are no tokens."""
        return self.nats.sum() / self._counted

    @property
    def mc_error(self) -> Array:
        """Standard error of `nats_per_token` for this very text: more draws shrink it."""
        return jnp.sqrt(self.mc_variance.sum()) / self._counted

    @property
    def text_error(self) -> Array:
        """Standard error of `nats_per_token` over texts: more rows shrink it, more draws do not.

        The ratio estimator's error from the rows' residuals `nats - nats_per_token tokens` (Cochran
        1977, eq. 2.46); it contains the Monte Carlo error. NaN for a single row, and for none.
        """
        rows = jnp.sum(self.tokens > 0)
        residual = self.nats - self.nats_per_token * self.tokens.astype(jnp.float32)
        spread = rows / jnp.maximum(rows - 1, 1) * jnp.sum(residual**2)
        # Of a single row the residual is 0 but for rounding, and says nothing.
        return jnp.where(rows > 1, jnp.sqrt(spread) / self._counted, jnp.nan)

    @property
    def _counted(self) -> Array:
        return jnp.maximum(self.tokens.sum(), 1).astype(jnp.float32)


def nelbo(
    denoiser: Denoiser,
    key: Array | None,
    tokens: Array,
    *,
    mask_id: int,
    draws: int = 8,
    maskable: Array | None = None,
    rows: Array | None = None,
    keys: Array | None = None,
    schedule: Schedule = linear(),
    steps: int | None = None,
) -> Likelihood:
    """Estimates each row's NELBO from `draws` corruptions with exact counts.

    With `steps` it is a bound of `-log p` of what `sample` writes in so many steps of
    `exact_count`. Tokens of one step are written independently of each other:

        -log p <= E over orders [ sum over steps, sum over the tokens of the step,
                                  of -log p(token | tokens of the steps before) ].

    With one step there is one order, and it is the likelihood of the product of the marginals
    itself: BERT's, which fills all masks at once. With as many steps as tokens it is the NELBO.

    The draws of a row form independent replicates. Within a replicate the mask counts are spread
    over {1..L} by rotated strata, so that few draws suffice. The error comes from the replicates;
    the naive error of the draws ignores the spreading and is several times too large. The number of
    replicates is the divisor of `draws` nearest below its square root (all draws, if prime).

    An even number of strata comes in pairs of k and L + 1 - k masks, which share L + 1 slots and
    halve the vocabulary projection. An odd number (with 2, 6 or 9 draws) has no pairs, and draws of
    `steps` have none.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves; it always sees all B rows, in order.
      key: the rows' draws are functions of (key, their number in `rows`).
      tokens: i32[B, L], clean.
      mask_id: the mask token.
      draws: network evaluations a row, at least 2.
      maskable: bool[B, L], the tokens that count; default all but `mask_id`.
      rows: i32[B], the rows' numbers in the whole text; default 0..B-1.
      keys: [B], one a row, instead of `key` and `rows`, as in `corrupt`.
      schedule: turns the mask rate into the denoiser's time.
      steps: of the sampler whose law it is; None for as many as tokens.

    Raises:
      ValueError: with fewer than 2 draws, fewer than 1 step, and as `corrupt`.
      TypeError: as `diffusion_loss`.
    """
    if draws < 2:
        raise ValueError(f"nelbo: draws is {draws}, at least 2 are needed for its error")
    if steps is not None and steps < 1:
        raise ValueError(f"nelbo: steps is {steps}, it must be at least 1")
    checks.check_denoiser(denoiser)
    check_schedule(schedule)
    maskable = maskable_of(tokens, mask_id, maskable)
    of_rows = noise.keys_of_rows(key, keys, rows, tokens)
    return drawn_nelbo(
        denoiser,
        of_rows,
        tokens,
        mask_id=mask_id,
        draws=draws,
        maskable=maskable,
        schedule=schedule,
        steps=steps,
    )


def drawn_nelbo(
    denoiser: Denoiser,
    of_rows: Array,
    tokens: Array,
    *,
    mask_id: int,
    draws: int,
    maskable: Array,
    schedule: Schedule,
    together: int = 1,
    steps: int | None = None,
) -> Likelihood:
    """`nelbo` of arguments that were checked.

    Args:
      denoiser: `(canvas, t) -> logits` in its two halves.
      of_rows: [B], the rows' keys.
      tokens: i32[B, L], clean.
      mask_id: the mask token.
      draws: network evaluations a row, at least 2.
      maskable: bool[B, L], the tokens that count.
      schedule: turns the mask rate into the denoiser's time.
      together: so many neighbouring rows are read out as one, for rows that are short.
      steps: as of `nelbo`.
    """
    batch, width = tokens.shape
    replicates = _replicates(draws)
    strata = draws // replicates
    group = 1 if strata % 2 or steps is not None else 2  # draws that share slots
    points = strata // group
    of_group = _encoding_apart(denoiser, group)
    repeated = jnp.repeat(tokens, group, axis=0)

    def one_group(index):  # i32[] -> f32[B], the mean over its draws
        replicate, point = index // points, index % points
        rotation = noise.row_uniform(noise.derive(of_rows, "spread", replicate), 1)[:, 0]
        u = jnp.mod(rotation + point / points, 1.0)
        drawn = [
            exact_masks(
                noise.derive(of_rows, "place", index * group + side),
                u,
                jnp.full(batch, side),
                maskable=maskable,
                schedule=schedule,
            )
            for side in range(group)
        ]
        masks = jax.tree.map(_interleaved, *drawn)
        masks = masks if steps is None else whole_steps(masks, steps, schedule)
        canvas = jnp.where(masks.selected, mask_id, repeated)
        corrupted = lay_out(repeated, canvas, masks, slots=width + group - 1, paired=group == 2)
        return group_nats(of_group, corrupted, mask_id=mask_id, together=together) / group

    nats = jax.lax.map(one_group, jnp.arange(draws // group))  # [draws / group, B]
    by_replicate = nats.reshape(replicates, points, -1).mean(axis=1)  # [replicates, B]
    return Likelihood(
        nats=by_replicate.mean(axis=0),
        mc_variance=by_replicate.var(axis=0, ddof=1) / replicates,
        tokens=maskable.sum(axis=1, dtype=jnp.int32),
    )


def _at_hand(leaf: object) -> bool:
    """Whether it is an array [B] whose numbers this process can read now."""
    if isinstance(leaf, jax.core.Tracer) or getattr(leaf, "ndim", None) != 1:
        return False
    if isinstance(leaf, jax.Array):
        return leaf.is_fully_addressable
    return hasattr(leaf, "__array__")


def _interleaved(*drawn: Array) -> Array:
    """Arrays `[B, ...]`, a row's beside each other: `[B n, ...]`."""
    return jnp.stack(drawn, axis=1).reshape(-1, *drawn[0].shape[1:])


def _encoding_apart(denoiser: Denoiser, group: int) -> Denoiser:
    """The denoiser of rows that stand `group` times in a batch, each time encoded with all rows."""

    def encode(canvas: Array, t: Array) -> Hidden:  # [B group, L], [B group]
        canvases, times = (x.reshape(-1, group, *x.shape[1:]) for x in (canvas, t))
        each = [denoiser.encode(canvases[:, n], times[:, n]) for n in range(group)]
        return jax.tree.map(_interleaved, *each)

    return denoiser._replace(encode=encode)


def _replicates(draws: int) -> int:
    """The largest divisor from 2 to the square root of `draws`, or all of them."""
    divisors = [d for d in range(2, math.isqrt(draws) + 1) if draws % d == 0]
    return max(divisors, default=draws)
