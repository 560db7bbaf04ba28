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
    encoder: bert.Config,
    rows: int,
    length: int,
    slots: int,
    block_size: int | None = None,
    *,
    whole: bool = False,
) -> StepFlops:
    """Operations of a step.

    Args:
      encoder: the network.
      rows: of the global batch.
      length: tokens of a row.
      slots: positions that are read out, of all rows.
      block_size: of blocks, whose step encodes a noisy and a clean text, without its last block.
        They see as many keys as one text in full attention (less with a window, which is not
        counted).
      whole: whether the whole encoder is computed at every position.
    """
    late = not whole and encoder.dropout == 0 and not encoder.time_conditioning
    both = length if block_size is None else 2 * length - block_size
    attended = _attention(encoder, rows * length, length)
    encoded = _products(encoder, rows, both, late=late) + attended
    read_out = _readout(encoder, slots, late=late)
    again = {
        "none": 0.0,
        "dots": attended,
        "full": encoded,
    }[encoder.remat]
    return StepFlops(model=3 * (encoded + read_out), recomputed=again)


def sampler(encoder: bert.Config, rows: int, length: int, steps: int) -> float:
    """Operations of `steps` network evaluations that write each position once."""
    late = not encoder.time_conditioning
    once = _encoded(encoder, rows, length, late=late)
    return steps * once + _readout(encoder, rows * length, late=late)


def of_block(encoder: bert.Config, rows: int, length: int, block_size: int) -> float:
    """Operations of one evaluation of a block, in the mean over the blocks of a text.

    The pass that commits the block before it takes twice that.
    """
    products = _products(encoder, rows, block_size, late=True)
    attended = _attention(encoder, rows * block_size, (length + block_size) // 2)
    return products + attended + _readout(encoder, rows * block_size, late=True)


def forward(encoder: bert.Config, rows: int, length: int) -> float:
    """Operations of the encoder alone, from tokens to the hidden states of all positions."""
    return _encoded(encoder, rows, length, late=False)


def _encoded(encoder: bert.Config, rows: int, length: int, *, late: bool) -> float:
    products = _products(encoder, rows, length, late=late)
    return products + _attention(encoder, rows * length, length)


def _products(encoder: bert.Config, rows: int, length: int, *, late: bool) -> float:
    """The encoder but for its attention.

    The last block's MLP is left out if it is computed `late`, in the readout.
    """
    width = encoder.width
    of_tokens = encoder.layers * (4 * width**2 + _mlp(encoder)) - late * _mlp(encoder)
    of_rows = 0
    if encoder.time_conditioning:
        of_rows = encoder.layers * 2 * (3 if encoder.norm_position == "pre" else 2) * width**2
    return 2.0 * rows * (of_tokens * length + of_rows)


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
