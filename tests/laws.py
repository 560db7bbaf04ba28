"""What samplers should draw, worked out over all canvases in float64 by other code than theirs.

A step is a matrix of transitions `[256, 256]` from each of CANVASES to each, a law their product.
"""

import itertools
from typing import NamedTuple

import numpy as np
from oracle import CANVASES, MASK, PLACES, STRINGS, L, V

BLANK = CANVASES == MASK  # [256, L]
LETTERS = np.minimum(CANVASES, V - 1)  # a token everywhere: of no meaning at blanks
SUBSETS = np.array(list(itertools.product([False, True], repeat=L)))  # [16, L]
ORDER = np.arange(L)


class Model(NamedTuple):
    """`[256, L, V]` given CANVASES: what scores are of, and what is drawn from."""

    own: np.ndarray
    drawn: np.ndarray


def normalised(p):
    return p / p.sum(axis=-1, keepdims=True)


def law_of(steps, canvas=(MASK,) * L):
    """Over STRINGS, of a chain of transitions."""
    law = np.all(np.array(canvas) == CANVASES, axis=1).astype(float)
    for step in steps:
        law = law @ step
    assert abs(law.sum() - 1) < 1e-9
    return law[STRINGS @ PLACES]


def filled(p):
    """How likely each of STRINGS is when all blanks are drawn at once: `[256, 81]`."""
    fits = np.all(BLANK[:, None] | (CANVASES[:, None] == STRINGS), axis=-1)
    return fits * np.where(BLANK[:, None], p[:, ORDER, STRINGS], 1).prod(axis=-1)


def moved(weights, to):
    """Transitions of `weights [256, 81]` to the canvases `to [256, 81, L]`."""
    step = np.zeros((len(CANVASES), len(CANVASES)))
    np.add.at(step, (np.arange(len(CANVASES))[:, None], to @ PLACES), weights)
    return step


def keeping(model, kept):
    """Draws all blanks and keeps of them those of `kept [256, 81, L]`."""
    gone = BLANK[:, None] & ~np.broadcast_to(kept, (len(CANVASES), len(STRINGS), L))
    return moved(filled(model.drawn), np.where(gone, MASK, STRINGS))


def in_random_order(model, due):
    """Writes `due [256]` blanks, any so many as likely as others."""
    step, due = 0, np.clip(due, 0, BLANK.sum(axis=1))
    for subset in SUBSETS:
        chosen = np.all(BLANK | ~subset, axis=1) & (subset.sum() == due)  # [256]
        step = step + chosen[:, None] * keeping(model, subset)
    return step / step.sum(axis=1, keepdims=True)


def writing(model, stays, taken_back):
    """Each blank stays and each token is taken back, alone; probabilities broadcast `[256, L]`."""
    gone = np.broadcast_to(np.where(BLANK, stays, taken_back), BLANK.shape)[..., None]
    then = np.where(BLANK[..., None], model.drawn, LETTERS[..., None] == np.arange(V))
    then = np.concatenate([(1 - gone) * then, gone], axis=-1)  # [256, L, V + 1]
    return then[:, ORDER, CANVASES].prod(axis=-1)


def reverse_process(rate, sigma, index, steps, model):
    """Mask rates `rate(i / steps)`; tokens are taken back with `sigma(t, highest)`."""
    now, then = rate(index / steps), rate((index + 1) / steps)
    back = sigma(1 - index / steps, min(1.0, then / (1 - now)) if now < 1 else 1.0)
    return writing(model, (then - back * (1 - now)) / now, back)


def of_tokens(p):
    """Of each string's token where it stands: `[256, 81, L]`."""
    return p[:, ORDER, STRINGS]


def certainty(p):
    """Minus the entropy, `[256, 1, L]`."""
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=-1)[:, None]


def margins(p):
    """Between the best two, `[256, 1, L]`."""
    best = np.sort(p, axis=-1)
    return (best[..., -1] - best[..., -2])[:, None]


def ranked(score, among):
    """Places by descending score, ties to the left; those that are not `among` come last."""
    order = np.argsort(np.where(among, -score, np.inf), axis=-1, kind="stable")
    return np.argsort(order, axis=-1)


def best(model, score, due):
    """Keeps `due` blanks `[256, 81 or 1]`, those of the highest score `[256, 81 or 1, L]`."""
    return keeping(model, ranked(score, BLANK[:, None]) < np.asarray(due)[..., None])


def one_by_noisy_score(model, score, scale):
    """Keeps one blank, the first by `score + scale Gumbel`: by the softmax of `score / scale`."""
    apart = np.where(BLANK[:, None], score, -1e9) / scale
    weights = BLANK[:, None] * np.exp(apart - apart.max(axis=-1, keepdims=True))
    weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-9)
    step = 0
    for position in range(L):
        gone = BLANK[:, None] & (position != ORDER)
        chosen = np.where(gone, MASK, STRINGS[None])
        step = step + moved(filled(model.drawn) * weights[..., position], chosen)
    return step


def ascending(values, score):
    """`values` at blanks, by descending score; NaN behind them."""
    among = np.broadcast_to(BLANK[:, None], np.broadcast_shapes(values.shape, BLANK[:, None].shape))
    order = np.argsort(np.where(among, -score, np.inf), axis=-1, kind="stable")
    return np.take_along_axis(np.where(among, values, np.nan), order, axis=-1)


def above(model, tau):
    p = of_tokens(model.own)
    return best(model, p, np.maximum(1, np.sum(BLANK[:, None] & (p >= tau), axis=-1)))


def by_factor(model, f):
    p = of_tokens(model.own)
    sure = (ORDER + 2) * (1 - ascending(p, p)) <= f  # NaN is never
    sure[..., 0] = True
    return best(model, p, np.cumprod(sure, axis=-1).sum(axis=-1))


def by_entropy_bound(model, gamma):
    score = certainty(model.own)
    nats = ascending(-score, score)
    fits = np.cumsum(nats, axis=-1) - nats <= gamma  # the last is the largest
    return best(model, score, fits.sum(axis=-1))


def planned(model, eta, left):
    """Draws all blanks, then masks the `left` of lowest `log p`, `eta` times it where one stood."""
    standing = np.take_along_axis(model.own, LETTERS[..., None], axis=-1)[..., 0]
    p = np.where(BLANK[:, None], of_tokens(model.own), standing[:, None])
    score = np.where(BLANK[:, None], 1, eta) * np.log(p)
    lowest = np.argsort(np.argsort(score, axis=-1, kind="stable"), axis=-1) < left
    return moved(filled(model.drawn), np.where(lowest, MASK, STRINGS))
