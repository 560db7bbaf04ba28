"""Checks of the pure functions' arguments, before anything is computed or compiled.

They look at types, shapes and dtypes only, so they work for traced arrays too. Code that looks at
values first asks whether they are `known`. Each error is one line: which argument, what it is, and
what to pass instead. A wrong type is a `TypeError`. A wrong dtype or shape, or a value out of its
range, is a `ValueError`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mdlm_jax.diffusion import shards

Array = jax.Array


def check_denoiser(value: Any, name: str = "denoiser") -> None:
    """Raises: TypeError: the value lacks the two halves of a `Denoiser`."""
    if hasattr(value, "encode_block"):
        raise TypeError(
            f"{name} is a BlockDenoiser: the functions in mdlm_jax.blocks take it, "
            "blocks.loss, blocks.nelbo, blocks.sample"
        )
    if hasattr(value, "start"):
        raise TypeError(f"{name} is a CachedDenoiser: sample takes it, and sampling.step_with")
    if callable(getattr(value, "encode", None)) and callable(getattr(value, "readout", None)):
        return
    what = _called(value) if callable(value) else _described(value)
    raise TypeError(
        f"{name} is {what}: pass as_denoiser(f, mask_id), "
        "where f(tokens i32[B, L], t f32[B]) returns logits [B, L, V]"
    )


def check_block_denoiser(value: Any) -> None:
    """Raises: TypeError: the value lacks the parts of a `BlockDenoiser`."""
    parts = ("encode", "start", "extend", "encode_block", "readout")
    if all(callable(getattr(value, part, None)) for part in parts):
        return
    if callable(getattr(value, "encode", None)) and callable(getattr(value, "readout", None)):
        raise TypeError(
            f"denoiser is {_described(value)}, of whole rows: blocks need a BlockDenoiser, of a "
            "model that was trained in blocks, or of a function by blocks.as_block_denoiser"
        )
    what = _called(value) if callable(value) else _described(value)
    raise TypeError(
        f"denoiser is {what}: pass blocks.as_block_denoiser(f, block_size, mask_id), where "
        "f(noisy i32[B, L], clean i32[B, L], t f32[B, L / block_size]) returns logits [B, L, V]"
    )


def check_kind(name: str, value: Any, kind: type, example: str) -> None:
    """Raises: TypeError: the value is not a `kind`, whose makers are functions to be called."""
    if isinstance(value, kind):
        return
    if callable(value):
        made = getattr(value, "__name__", "f")
        raise TypeError(f"{name} is {_called(value)}: call it, {name}={made}(...)")
    raise TypeError(
        f"{name} is {_described(value)}, it must be a {kind.__name__}, such as {example}"
    )


def check_text(name: str, value: Any) -> None:
    """Raises: TypeError, ValueError: the value is not integers [B, L], B and L at least 1."""
    _require_array(name, value)
    if value.ndim != 2 or not jnp.issubdtype(value.dtype, jnp.integer):
        one_row = value.ndim == 1 and jnp.issubdtype(value.dtype, jnp.integer)
        cure = f": of one row pass {name}[None]" if one_row else ""
        raise ValueError(f"{name} must be integers [B, L], not {_shaped(value)}{cure}")
    check_not_explicit(name, value)
    if 0 in value.shape:
        raise ValueError(f"{name} is empty, {_shaped(value)}: at least a row of a token is needed")


def check_not_explicit(name: str, value: Array) -> None:
    """Raises: ValueError: the value is split over a mesh of explicit axes.

    Every gather from such arrays would have to state where its result lies, also in a denoiser of
    the user's.
    """
    axes = shards.explicit_axes(value)
    if axes:
        raise ValueError(
            f"{name} is split over {', '.join(axes)}, of AxisType.Explicit (jax.make_mesh's "
            "default): make the mesh with axis_types=(AxisType.Auto,) * number_of_axes, or wrap "
            "the function in jax.sharding.auto_axes"
        )


def check_maskable(name: str, value: Any, shape: tuple[int, ...] | None = None) -> None:
    """Raises: TypeError, ValueError: the value is not bool [B, L], of this shape."""
    _require_array(name, value)
    if value.dtype != np.bool_:
        raise ValueError(f"{name} must be bool [B, L], not {_shaped(value)}: pass {name} != 0")
    if value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"{name} must be bool [B, L], not empty, not {_shaped(value)}")
    if shape is not None and value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape}, the text has {shape}")


def check_rows(value: Any, batch: int) -> None:
    """Raises: TypeError, ValueError: the value is not integers [batch]."""
    _require_array("rows", value)
    if value.shape != (batch,):
        raise ValueError(f"rows has shape {value.shape}, it must be ({batch},)")
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(f"rows must be integers [{batch}], not {_shaped(value)}")


def check_whole(name: str, value: Any) -> None:
    """Raises: TypeError: the value is not a whole number: an int, or an integer scalar."""
    if _is_array(value):
        fits = value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer)
        described = _shaped(value)
    else:
        fits = isinstance(value, int | np.integer) and not isinstance(value, bool)
        described = _described(value)
    if not fits:
        raise TypeError(f"{name} is {described}, it must be one whole number")


def known(value: Any) -> np.ndarray | None:
    """The values, or None where they cannot be read: traced, or on another process."""
    if isinstance(value, jax.core.Tracer) or not getattr(value, "is_fully_addressable", True):
        return None
    return np.asarray(value)


def check_function(value: Any) -> None:
    """Raises: TypeError: the argument of `as_denoiser` is no function, or already a denoiser."""
    if isinstance(value, tuple) and hasattr(value, "readout"):
        raise TypeError("fn is a denoiser already: pass it on as it is")
    if not callable(value):
        raise TypeError(
            f"fn is {_described(value)}, it must be a function (tokens i32[B, L], t f32[B]) -> "
            "logits [B, L, V]"
        )


def check_block_function(value: Any) -> None:
    """Raises: TypeError: the argument of `as_block_denoiser` is no function."""
    if hasattr(value, "encode_block"):
        raise TypeError("fn is a BlockDenoiser already: pass it on as it is")
    if not callable(value):
        raise TypeError(
            f"fn is {_described(value)}, it must be a function (noisy i32[B, L], clean i32[B, L], "
            "t f32[B, L / size]) -> logits [B, L, V]"
        )


def check_logits(value: Any, tokens: Array, lift: str = "as_denoiser") -> None:
    """Raises: TypeError, ValueError: a model's output is not float [B, L, V] over `tokens`."""
    batch, width = tokens.shape
    expected = f"it must return float logits [{batch}, {width}, V]"
    if not _is_array(value):
        raise TypeError(f"the function in {lift} returned {_described(value)}: {expected}")
    fits = value.ndim == 3 and value.shape[:2] == tokens.shape
    if not (fits and jnp.issubdtype(value.dtype, jnp.floating)):
        raise ValueError(f"the function in {lift} returned {_shaped(value)}: {expected}")


def _require_array(name: str, value: Any) -> None:
    if not _is_array(value):
        raise TypeError(f"{name} is {_described(value)}: pass an array, jnp.asarray({name})")


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def _shaped(value: Array) -> str:
    return f"{value.dtype}{list(value.shape)}"


def _called(value: Any) -> str:
    name = getattr(value, "__name__", None)
    return f"the function {name}" if name else f"a {type(value).__name__}"


def _described(value: Any) -> str:
    """The value of a number or a name; the type of anything else."""
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return f"a {type(value).__name__}"
