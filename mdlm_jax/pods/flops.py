"""Floating-point operations of a training step and of a sampler, counted from the shapes.

A multiplication and an addition are two. Only matrix products are counted: a forward pass takes
`2 * parameters * tokens`, and attention `4 * D * (keys a query sees)` a token and layer; the
backward pass takes twice that (Kaplan et al. 2020, section 2.1). The vocabulary projection, and
without time conditioning and dropout the last block's MLP, are counted for the positions that are
read out only.
"""

from typing import NamedTuple

from mdlm_jax.networks import bert


class StepFlops(NamedTuple):
    """Operations of one training step, of all devices together.

    Attributes:
      model: what the mathematics needs.
      recomputed: what `remat` repeats in the backward pass. (Logits that are read out in several
        chunks are computed once more too; that is not counted.)
    """

    model: float
    recomputed: float


def training_step(
    encoder: bert.Config, rows: int, length: int, slots: int, *, whole: bool = False
) -> StepFlops:
    """Operations of a step.

    Args:
      encoder: the network.
      rows: of the global batch.
      length: tokens of a row.
      slots: positions that are read out, of all rows.
      whole: whether the whole encoder is computed at every position.
    """
    late = not whole and encoder.dropout == 0 and not encoder.time_conditioning
    encoded = _encoded(encoder, rows, length, late=late)
    read_out = _readout(encoder, slots, late=late)
    again = {
        "none": 0.0,
        "dots": _attention(encoder, rows * length, length),
        "full": encoded,
    }[encoder.remat]
    return StepFlops(model=3 * (encoded + read_out), recomputed=again)


def sampler(encoder: bert.Config, rows: int, length: int, steps: int) -> float:
    """Operations of `steps` network evaluations that write each position once."""
    late = not encoder.time_conditioning
    once = _encoded(encoder, rows, length, late=late)
    return steps * once + _readout(encoder, rows * length, late=late)


def forward(encoder: bert.Config, rows: int, length: int) -> float:
    """Operations of the encoder alone, from tokens to the hidden states of all positions."""
    return _encoded(encoder, rows, length, late=False)


def _encoded(encoder: bert.Config, rows: int, length: int, *, late: bool) -> float:
    """The encoder, without the last block's MLP if that is computed `late`, in the readout."""
    width = encoder.width
    of_tokens = encoder.layers * (4 * width**2 + _mlp(encoder)) - late * _mlp(encoder)
    of_rows = 0
    if encoder.time_conditioning:
        of_rows = encoder.layers * 2 * (3 if encoder.norm_position == "pre" else 2) * width**2
    products = 2.0 * rows * (of_tokens * length + of_rows)
    return products + _attention(encoder, rows * length, length)


def _mlp(encoder: bert.Config) -> int:
    """The number of its weights."""
    return (3 if encoder.gated else 2) * encoder.width * encoder.mlp_width


def _attention(encoder: bert.Config, tokens: int, length: int) -> float:
    keys = {
        "full": length,
        "causal": (length + 1) / 2,
        "local": min(2 * encoder.window + 1, length),
    }[encoder.attention]
    everywhere = -(-encoder.layers // encoder.global_every) if encoder.global_every else 0
    of_layers = (encoder.layers - everywhere) * keys + everywhere * length
    return 4.0 * tokens * of_layers * encoder.width


def _readout(encoder: bert.Config, positions: int, *, late: bool) -> float:
    head = encoder.width**2 + encoder.width * encoder.padded_vocab
    return 2.0 * positions * (head + late * _mlp(encoder))
