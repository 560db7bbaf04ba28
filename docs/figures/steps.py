"""Draws docs/steps.png: how far samples are from the law, by network evaluations.

    python docs/figures/steps.py

The language has 256 strings of 8 binary tokens with random probabilities, and the denoiser knows
every conditional exactly: all error is the sampler's. The distance is the total variation, half
the summed difference of probabilities, of 2^17 samples.
"""

import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from mdlm_jax import Denoiser, as_denoiser, sample, strategies

LENGTH, MASK, SAMPLES = 8, 2, 2**17
PLACES = 3 ** np.arange(LENGTH)
DOUBLING = (1, 2, 4, 8, 16, 32, 64)
UP_TO_ALL = (1, 2, 3, 4, 6, 8)
# Settings of each: a strategy, and how many steps it may take.
STRATEGIES = {
    "ancestral": [(strategies.ancestral(), n) for n in DOUBLING],
    "exact_count": [(strategies.exact_count(), n) for n in UP_TO_ALL],
    "confidence(margin)": [
        (strategies.confidence("margin", temperature=0.0, grid="uniform"), n) for n in UP_TO_ALL
    ],
    "entropy_bounded": [
        (strategies.entropy_bounded(gamma), LENGTH) for gamma in (9.0, 2.0, 1.0, 0.5, 0.2, 0.0)
    ],
    "threshold": [(strategies.threshold(tau), LENGTH) for tau in (0.0, 0.6, 0.7, 0.8, 0.9, 1.0)],
    "confidence": [(strategies.confidence(), n) for n in UP_TO_ALL],
    "path_planning": [(strategies.path_planning(), n) for n in UP_TO_ALL],
    "remask(rescale, 0.1)": [(strategies.remask("rescale", 0.1), n) for n in DOUBLING],
}


def random_language(seed: int = 0) -> np.ndarray:
    """Probabilities of all strings, f64[2, 2, ..., 2]."""
    joint = np.random.default_rng(seed).gamma(0.3, size=(2,) * LENGTH)
    return joint / joint.sum()


def true_denoiser(joint: np.ndarray) -> Denoiser:
    """Every conditional of the language as a table, by canvas: logits f32[3^8, 8, 3]."""
    table = np.zeros((3**LENGTH, LENGTH, 3))
    for canvas in itertools.product(range(3), repeat=LENGTH):
        fits = joint[tuple(slice(None) if token == MASK else slice(token, token + 1)
                           for token in canvas)]  # fmt: skip
        for position, token in enumerate(canvas):
            if token == MASK:
                others = tuple(i for i in range(LENGTH) if i != position)
                table[np.dot(canvas, PLACES), position, :2] = fits.sum(axis=others)
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(table), jnp.float32)
    return as_denoiser(lambda tokens, t: logits[tokens @ PLACES], MASK)


def total_variation(samples: np.ndarray, joint: np.ndarray) -> float:
    """Of the samples' `[N, 8]` frequencies from the language's probabilities."""
    counts = np.zeros_like(joint)
    np.add.at(counts, tuple(samples.T), 1)
    return float(np.abs(counts / len(samples) - joint).sum() / 2)


def main() -> None:
    """Measures, prints and draws."""
    joint = random_language()
    denoiser = true_denoiser(joint)
    blank = jnp.full((SAMPLES, LENGTH), MASK)
    rng = np.random.default_rng(1)
    strings = np.array(list(itertools.product(range(2), repeat=LENGTH)))
    perfect = strings[rng.choice(len(strings), SAMPLES, p=joint.ravel())]
    floor = total_variation(perfect, joint)
    print(f"{SAMPLES:,} perfect samples: {floor:.4f}")

    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.subplots()
    for name, settings in STRATEGIES.items():
        points = []
        for strategy, steps in settings:
            write = jax.jit(
                functools.partial(
                    sample, denoiser, mask_id=MASK, strategy=strategy, trace=True,
                    chunk=SAMPLES * LENGTH,
                )
            )  # fmt: skip
            tokens, trace = write(jax.random.key(0), blank, steps=steps)
            far = total_variation(np.asarray(tokens), joint)
            points.append((float(trace.evaluations.mean()), far))
        print(name, {round(evaluations, 2): round(far, 4) for evaluations, far in points})
        axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
    axes.axhline(floor, color="grey", linestyle=":", label="perfect samples, as many")
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="network evaluations for 8 tokens, mean of a row",
        ylabel="total variation",
        title="Distance of samples from the true law",
    )
    axes.set_yticks(
        [0.01, 0.02, 0.05, 0.1, 0.2, 0.5], labels=["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]
    )
    axes.set_xticks([1, 2, 4, 8, 16, 32], labels=[1, 2, 4, 8, 16, 32])
    axes.set_xlim(0.9, 40)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(Path(__file__).parents[1] / "steps.png", dpi=150)


if __name__ == "__main__":
    main()
