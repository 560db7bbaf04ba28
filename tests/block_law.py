"""Block laws that can be enumerated: a table over canvases, read block by block.

In block b the canvas holds the clean tokens before b, what b holds, and masks behind it. Numpy sums
over strings and over sets are in float64 and independent of the library.
"""

import itertools

import jax.numpy as jnp
import numpy as np
from oracle import MASK, PLACES, STRINGS, L

from mdlm_jax import blocks

SIZES = (1, 2, 4)  # all that divide L


def block_denoiser(conditionals, size, mask_id=MASK):
    """Probabilities `[256, L, V]` by canvas as a block denoiser; the room may exceed L tokens."""
    with np.errstate(divide="ignore"):
        table = np.log(conditionals)
    table = np.pad(table, ((0, 0), (0, 0), (0, 1)), constant_values=0.7)  # the mask's logit
    table = jnp.asarray(table, jnp.float32)

    def logits(noisy, clean, t):
        place = jnp.arange(L)

        def in_block(first):
            before, within = place < first, (place >= first) & (place < first + size)
            canvas = jnp.where(before, clean[:, :L], jnp.where(within, noisy[:, :L], MASK))
            return table[canvas @ jnp.asarray(PLACES)][:, first : first + size]

        assert t.shape == (len(noisy), noisy.shape[1] // size)
        at = jnp.concatenate([in_block(first) for first in range(0, L, size)], axis=1)
        return jnp.pad(at, ((0, 0), (0, noisy.shape[1] - L), (0, 0)))

    return blocks.as_block_denoiser(logits, size, mask_id)


def canvases_of(string, size):
    """Of each block and each of its sets of masks: `(block, positions, canvas)`."""
    for block in range(L // size):
        first = block * size
        for masked in itertools.product([False, True], repeat=size):
            canvas = np.full(L, MASK)
            canvas[:first] = string[:first]
            canvas[first : first + size] = np.where(masked, MASK, string[first : first + size])
            yield block, first + np.flatnonzero(masked), canvas


def enumerated(conditionals, string, size, maskable=None):
    """The NELBO of a string: the mean over counts and sets of each block, in nats."""
    maskable = np.ones(L, bool) if maskable is None else maskable
    by_count = {}  # (block, count) -> nats of each set
    for block, positions, canvas in canvases_of(string, size):
        if len(positions) and maskable[positions].all():
            p = conditionals[canvas @ PLACES][positions, string[positions]]
            with np.errstate(divide="ignore"):
                by_count.setdefault((block, len(positions)), []).append(-np.log(p).sum())
    total = 0.0
    for block in range(L // size):
        most = int(maskable[block * size : (block + 1) * size].sum())
        total += sum(np.mean(by_count[block, k]) / k for k in range(1, most + 1))
    return total


def enumerated_all(conditionals, size):
    """Of all strings, `[81]`."""
    return np.array([enumerated(conditionals, string, size) for string in STRINGS])


def law_of_writing(conditionals, canvas, size):
    """The law over STRINGS of one token a step in random orders, block by block.

    Masks of the canvas are blank. A block sees what is given in it, and nothing behind it.
    """
    canvas = np.asarray(canvas)
    law = np.zeros(len(STRINGS))
    for i, string in enumerate(STRINGS):
        if not np.all((canvas == MASK) | (canvas == string)):
            continue
        law[i] = 1.0
        for first in range(0, L, size):
            blank = [p for p in range(first, first + size) if canvas[p] == MASK]
            orders = list(itertools.permutations(blank))
            chances = []
            for order in orders:
                seen = np.full(L, MASK)
                seen[:first] = string[:first]
                seen[first : first + size] = canvas[first : first + size]
                chance = 1.0
                for position in order:
                    chance *= conditionals[seen @ PLACES][position, string[position]]
                    seen[position] = string[position]
                chances.append(chance)
            law[i] *= np.mean(chances)
    return law
