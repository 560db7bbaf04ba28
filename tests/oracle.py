"""A text model that can be enumerated: every joint over V^L strings, its exact conditionals.

Strings have L = 4 tokens from {0, 1, 2}; the mask is 3. A canvas is numbered in base 4, and a table
holds the true conditional of every position given every canvas. Everything here is float64 numpy,
independent of the library.
"""

import itertools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mdlm_jax import as_denoiser

V, L, MASK = 3, 4, 3
STRINGS = np.array(list(itertools.product(range(V), repeat=L)))  # [81, L]
CANVASES = np.array(list(itertools.product(range(V + 1), repeat=L)))  # [256, L]
PLACES = (V + 1) ** np.arange(L - 1, -1, -1)


class Oracle(NamedTuple):
    """`joint [81]` over STRINGS and `conditionals [256, L, V]` given CANVASES."""

    joint: np.ndarray
    conditionals: np.ndarray

    def denoiser(self, drift=0.0):
        """The table as a denoiser; with `drift` its logits depend on t: `(1 - drift t) log p`."""
        with np.errstate(divide="ignore"):
            table = np.log(self.conditionals)
        table = np.pad(table, ((0, 0), (0, 0), (0, 1)), constant_values=0.7)  # the mask's logit
        table = jnp.asarray(table, jnp.float32)

        def logits(tokens, t):
            at = table[tokens @ jnp.asarray(PLACES)]
            return (1 - drift * t)[:, None, None] * at if drift else at

        return as_denoiser(logits, MASK)

    def set_nats(self, string, drift=0.0, t=0.0):
        """Summed cross-entropy for every set of masked positions: `[(positions, nats)]`."""
        out = []
        for masked in itertools.product([False, True], repeat=L):
            canvas = np.where(masked, MASK, string)
            p = self.conditionals[canvas @ PLACES] ** (1 - drift * t)
            p = p / p.sum(axis=-1, keepdims=True)
            positions = np.flatnonzero(masked)
            out.append((positions, -np.log(p[positions, string[positions]]).sum()))
        return out

    def exact_count_nelbo(self, string, most=L):
        """`L mean_k S_k / k` over k = 1..most, from the sets of each size; the NELBO where all."""
        by_size = [[] for _ in range(L + 1)]
        for positions, nats in self.set_nats(string):
            by_size[len(positions)].append(nats)
        return L * np.mean([np.mean(by_size[k]) / k for k in range(1, most + 1)])

    def schedule_nelbo(self, string, schedule, drift=0.0, nodes=64):
        """`int weight(t) sum_sets P(set | t) nats(set, t) dt`, by Gauss-Legendre quadrature."""
        x, w = np.polynomial.legendre.leggauss(nodes)
        total = 0.0
        for t, dt in zip((x + 1) / 2, w / 2, strict=True):
            rate = float(schedule.rate(jnp.float32(t)))
            weight = float(schedule.weight(jnp.float32(t)))
            for positions, nats in self.set_nats(string, drift, t):
                k = len(positions)
                if k:
                    total += dt * weight * rate**k * (1 - rate) ** (L - k) * nats
        return total

    def posterior(self, canvas):
        """The joint over STRINGS given the canvas's clean tokens."""
        fits = np.all((canvas == MASK) | (canvas == STRINGS), axis=1)
        return self.joint * fits / (self.joint * fits).sum()


def make_oracle(seed=0):
    """A random joint with a fifth of its cells zero."""
    rng = np.random.default_rng(seed)
    joint = rng.gamma(0.7, size=len(STRINGS)) * (rng.random(len(STRINGS)) > 0.2)
    joint = joint / joint.sum()
    conditionals = np.empty((len(CANVASES), L, V))
    for i, canvas in enumerate(CANVASES):
        fits = joint * np.all((canvas == MASK) | (canvas == STRINGS), axis=1)
        fits = fits if fits.sum() > 0 else np.ones_like(joint)  # an impossible canvas
        for position in range(L):
            for token in range(V):
                conditionals[i, position, token] = fits[STRINGS[:, position] == token].sum()
    return Oracle(joint, conditionals / conditionals.sum(axis=-1, keepdims=True))


def chi_square_p(counts, probabilities):
    """p-value of the counts under the law; impossible cells must be empty, rare ones are pooled."""
    from scipy import stats

    expected = probabilities * counts.sum()
    assert counts[probabilities == 0].sum() == 0
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    if keep.sum() == 1:  # one string is certain, and no other came
        return 1.0
    return stats.chisquare(observed[keep], expected[keep]).pvalue
