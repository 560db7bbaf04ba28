"""Every strategy, and the denoiser that knows nothing of consistency."""

import jax.numpy as jnp
import numpy as np
from oracle import CANVASES, PLACES, L, V

from mdlm_jax import as_denoiser, schedules, strategies

EVERY = {
    "exact_count": strategies.exact_count(),
    "exact_count, cosine grid": strategies.exact_count(grid="cosine"),
    "exact_count, last greedy": strategies.exact_count(last="greedy"),
    "left_to_right": strategies.left_to_right(),
    "first_hitting": strategies.first_hitting(),
    "ancestral": strategies.ancestral(),
    "ancestral, cosine": strategies.ancestral(schedules.cosine()),
    "ancestral, cosine grid": strategies.ancestral(grid="cosine"),
    "confidence": strategies.confidence(),
    "confidence, margin": strategies.confidence("margin"),
    "confidence, entropy": strategies.confidence("entropy", grid="uniform"),
    "greedy": strategies.greedy(),
    "threshold": strategies.threshold(0.6),
    "factor": strategies.factor(0.9),
    "entropy_bounded": strategies.entropy_bounded(0.5),
    "remask, cap": strategies.remask("cap", 0.3),
    "remask, rescale": strategies.remask("rescale", 0.4),
    "remask, confidence": strategies.remask("confidence", 0.9),
    "remask, loop": strategies.remask("loop", 0.4),
    "path_planning": strategies.path_planning(),
}


def table_denoiser(conditionals):
    """Probabilities `[256, L, V]` by canvas, consistent with a joint or not, as a denoiser."""
    with np.errstate(divide="ignore"):
        table = np.log(conditionals)
    table = np.pad(table, ((0, 0), (0, 0), (0, 1)), constant_values=0.7)  # the mask's logit
    table = jnp.asarray(table, jnp.float32)
    return as_denoiser(lambda tokens, t: table[tokens @ jnp.asarray(PLACES)], V)


def any_conditionals(seed=3):
    """Unrelated probabilities for every canvas and position: no joint has them."""
    draw = np.random.default_rng(seed).gamma(0.7, size=(len(CANVASES), L, V)) + 1e-3
    return draw / draw.sum(axis=-1, keepdims=True)
