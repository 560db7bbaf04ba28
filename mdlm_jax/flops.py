"""Floating-point operations of a training step and of a sampler, counted from the shapes.

A multiplication and an addition are two. Matrix products alone are counted: a forward pass takes
`2 * parameters * tokens`, and attention `4 * D * (keys a query sees)` a token and layer; the
backward pass takes twice that (Kaplan et al. 2020, section 2.1). The vocabulary projection is
counted for the positions that are read out, not for all.
"""

from typing import NamedTuple

from mdlm_jax.networks import bert


class StepFlops(NamedTuple):
    """Operations of one training step, of all devices together.

    Attributes:
      model: what the mathematics needs.
      recomputed: what `remat` does once more in the backward pass. (That logits read out in several
        chunks are computed once more is left out.)
    """

    model: float
    recomputed: float


def training_step(encoder: bert.Config, rows: int, length: int, slots: int) -> StepFlops:
    """Operations of a step.

    Args:
      encoder: the network.
      rows: of the global batch.
      length: tokens of a row.
      slots: positions that are read out, of all rows.
    """
    tokens = rows * length
    products = encoder.layers * _layer(encoder, rows, length)
    attended = _attention(encoder, tokens, length)
    read_out = _readout(encoder, slots)
    again = {"none": 0.0, "dots": attended, "full": products + attended}[encoder.remat]
    return StepFlops(model=3 * (products + attended + read_out), recomputed=again)


def sampler(encoder: bert.Config, rows: int, length: int, steps: int) -> float:
    """Operations of `steps` network evaluations that write each position once."""
    products = encoder.layers * _layer(encoder, rows, length)
    once = products + _attention(encoder, rows * length, length)
    return steps * once + _readout(encoder, rows * length)


def _layer(encoder: bert.Config, rows: int, length: int) -> float:
    width = encoder.width
    weights = 4 * width**2 + (3 if encoder.gated else 2) * width * encoder.mlp_width
    of_row = 0
    if encoder.time_conditioning:
        of_row = 2 * (3 if encoder.norm_position == "pre" else 2) * width**2
    return 2.0 * rows * (weights * length + of_row)


def _attention(encoder: bert.Config, tokens: int, length: int) -> float:
    keys = {
        "full": length,
        "causal": (length + 1) / 2,
        "local": min(2 * encoder.window + 1, length),
    }[encoder.attention]
    everywhere = -(-encoder.layers // encoder.global_every) if encoder.global_every else 0
    of_layers = (encoder.layers - everywhere) * keys + everywhere * length
    return 4.0 * tokens * of_layers * encoder.width


def _readout(encoder: bert.Config, positions: int) -> float:
    return 2.0 * positions * (encoder.width**2 + encoder.width * encoder.padded_vocab)
