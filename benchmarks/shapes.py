"""The shapes that are timed, by name, and the flags that change them."""

import argparse
import dataclasses
from typing import Any, NamedTuple

import jax

from mdlm_jax.networks import bert

# As the config `owt` has it, without dropout and QK-norm: what PyTorch's fused kernels compute too.
_MODERN = {
    "norm_position": "pre",
    "norm": "rmsnorm",
    "norm_eps": 1e-6,
    "positions": "rope",
    "activation": "gelu_tanh",
    "use_bias": False,
    "token_types": 0,
    "dropout": 0.0,
    "vocab_multiple": 128,
    "dtype": "bfloat16",
    "scan": False,
}
_BASE = {**_MODERN, "layers": 12, "width": 768, "heads": 12, "mlp_width": 3072}
_340M = {**_MODERN, "layers": 24, "width": 1024, "heads": 16, "mlp_width": 4096}
_1B = {**_MODERN, "layers": 22, "width": 2048, "heads": 16, "mlp_width": 8192}
_ON_CPU = {**_MODERN, "dtype": "float32", "vocab_multiple": 1}
# The config `quickstart` of version 0.1.0, which the figures of docs/performance.md are of.
_QUICKSTART = {
    **_ON_CPU,
    "layers": 2,
    "width": 128,
    "heads": 4,
    "mlp_width": 512,
    "qk_norm": True,
    "attention": "local",
    "window": 4,
    "use_bias": True,
    "init_scale": 0.06,
}
_TINY = {**_ON_CPU, "layers": 2, "width": 32, "heads": 2, "mlp_width": 64}


class Shape(NamedTuple):
    """A batch and its encoder.

    Attributes:
      rows: of a batch, `B`.
      length: tokens of a row, `L`.
      encoder: the network; the last token of its vocabulary is the mask.
    """

    rows: int
    length: int
    encoder: bert.Config


class _Named(NamedTuple):
    rows: int
    length: int
    vocab_size: int
    encoder: dict[str, Any]


_SHAPES = {
    "owt": _Named(32, 1024, 50_258, _BASE),
    "bert_base": _Named(64, 512, 30_522, _BASE),
    "340m": _Named(64, 512, 30_522, _340M),
    "1b": _Named(32, 1024, 50_258, _1B),
    "quickstart": _Named(8, 128, 2_048, _QUICKSTART),
    "tiny": _Named(4, 16, 300, _TINY),
}
NAMES = tuple(_SHAPES)

# Fields of the encoder that a flag of their name changes.
_CHANGEABLE = ("remat", "attention_backend", "dtype")


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser that shows the module's docstring under `--help`."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_flags(flags: argparse.ArgumentParser, default: str = "owt") -> None:
    """`--shape`, and what overrides it."""
    flags.add_argument("--shape", choices=NAMES, default=default, help="Default: %(default)s.")
    flags.add_argument("--rows", type=int, help="Rows of a batch, instead of the shape's.")
    flags.add_argument("--length", type=int, help="Tokens of a row, instead of the shape's.")
    flags.add_argument("--remat", help="none, dots or full.")
    flags.add_argument(
        "--attention_backend", help="Default: cudnn on GPUs in bfloat16, splash on TPUs."
    )
    flags.add_argument("--dtype", help="float32 or bfloat16.")
    scan = argparse.BooleanOptionalAction
    flags.add_argument("--scan", action=scan, help="One compiled block, looped over, or all.")


def chosen(flags: argparse.ArgumentParser, args: argparse.Namespace) -> Shape:
    """The shape of the flags; what describes none ends the command with a line."""
    named = {name: getattr(args, name) for name in _CHANGEABLE}
    try:
        asked = shape(args.shape, rows=args.rows, length=args.length, scan=args.scan, **named)
    except ValueError as error:
        flags.error(f"--{error}")
    if args.attention_backend is None:
        backend = best_backend(asked.encoder.dtype)
        asked = asked._replace(
            encoder=dataclasses.replace(asked.encoder, attention_backend=backend)
        )
    return asked


def shape(name: str, *, rows: int | None = None, length: int | None = None, **encoder) -> Shape:
    """A named shape, changed where a value is not None.

    Args:
      name: one of `NAMES`.
      rows: an even number, for pairs of rows share their slots.
      length: tokens of a row.
      **encoder: fields of `bert.Config`.

    Raises:
      ValueError: a value that describes no batch or no encoder.
    """
    named = _SHAPES[name]
    rows = named.rows if rows is None else rows
    length = named.length if length is None else length
    if rows < 2 or rows % 2:
        raise ValueError(f"rows={rows}: must be even and at least 2")
    if length < 1:
        raise ValueError(f"length={length}: must be at least 1")
    config = bert.Config(
        vocab_size=named.vocab_size,
        mask_id=named.vocab_size - 1,
        max_length=length,
        **named.encoder,
    )
    changed = {key: value for key, value in encoder.items() if value is not None}
    return Shape(rows, length, dataclasses.replace(config, **changed))


def best_backend(dtype: str) -> str:
    """The attention backend that is fastest on the devices here; cuDNN computes no float32."""
    fastest = {"gpu": "cudnn", "tpu": "splash"}.get(jax.default_backend(), "xla")
    return "xla" if (fastest, dtype) == ("cudnn", "float32") else fastest
