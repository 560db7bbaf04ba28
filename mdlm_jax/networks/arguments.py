"""Checks of what a network is given, before anything is compiled."""

import jax
import jax.numpy as jnp

from mdlm_jax.diffusion import checks
from mdlm_jax.networks.config import Config

Array = jax.Array


def check_tokens(name: str, tokens: Array, config: Config, longest: int) -> None:
    """Raises: ValueError: tokens that are not i32 `[B, L]` of the vocabulary, `L <= longest`."""
    if tokens.ndim != 2 or tokens.dtype != jnp.int32:
        raise ValueError(f"{name} are {describe(tokens)}: must be int32 [B, L]")
    checks.check_not_explicit(name, tokens)
    if tokens.shape[1] > longest:
        raise ValueError(f"{name} have length {tokens.shape[1]}: max_length is {longest}")
    check_range(name, tokens, 0, config.vocab_size)


def check_given(text: Array, count: Array, rows: int, config: Config) -> None:
    """Raises: ValueError: no text i32 `[B, L]` of the vocabulary, or no numbers i32 `[B]`."""
    check("text", text, (rows, *text.shape[1:2]), jnp.int32, "int32")
    check_range("text", text, 0, config.vocab_size)
    check("count", count, (rows,), jnp.int32, "int32")


def check_rows(
    config: Config,
    tokens: Array,
    t: Array | None,
    valid: Array | None = None,
    segment_ids: Array | None = None,
    token_types: Array | None = None,
    label: Array | None = None,
    positions: Array | None = None,
) -> None:
    """Raises: ValueError: arguments as of `bert.logits` that do not fit the config."""
    check_tokens("tokens", tokens, config, config.max_length)
    rows, length = tokens.shape
    if config.time_conditioning:
        if t is None:
            raise ValueError("t is None: a network with time_conditioning needs float [B]")
        check("t", t, (rows,), jnp.floating, "float")
    if token_types is not None and not config.token_types:
        raise ValueError("token_types given to a network with token_types=0: must be None")
    check_valid(valid, rows, length)
    check("segment_ids", segment_ids, (rows, length), jnp.int32, "int32")
    check("token_types", token_types, (rows, length), jnp.int32, "int32")
    check("positions", positions, (rows, length), jnp.int32, "int32")
    check_label(label, config, rows)
    last = config.max_length if config.positions == "learned" else jnp.iinfo(jnp.int32).max
    check_range("positions", positions, 0, last)


def check_valid(valid: Array | None, rows: int, length: int) -> None:
    """Raises: ValueError: neither bool `[B, L]` nor i32 `[B]`, nor None."""
    if valid is not None and (valid.shape, valid.dtype) != ((rows,), jnp.int32):
        check("valid", valid, (rows, length), jnp.bool_, "bool", f", or int32 [{rows}]")


def check_label(label: Array | None, config: Config, rows: int) -> None:
    """Raises: ValueError: labels that are not i32 `[B]`, or known ones that do not exist."""
    if label is not None and not config.classes:
        raise ValueError("label given to a network with classes=0: must be None")
    check("label", label, (rows,), jnp.int32, "int32")
    check_range("label", label, -1, config.classes)


def check(
    name: str, value: Array | None, shape: tuple, kind, kind_name: str, others: str = ""
) -> None:
    """Raises: ValueError: the value, if there is one, has another shape or type."""
    if value is None:
        return
    if value.shape != shape or not jnp.issubdtype(value.dtype, kind):
        accepted = f"{kind_name} {list(shape)}{others}"
        raise ValueError(f"{name} is {describe(value)}: must be {accepted}")


def check_range(name: str, value: Array | None, first: int, behind: int) -> None:
    """Raises: ValueError: a known value is out of its range, and would read another row."""
    seen = None if value is None else checks.known(value)
    if seen is not None and seen.size and (seen.min() < first or seen.max() >= behind):
        wrong = seen.min() if seen.min() < first else seen.max()
        raise ValueError(f"{name} holds {wrong}: must be from {first} to {behind - 1}")


def describe(value: Array) -> str:
    """Type and shape."""
    return f"{value.dtype} {list(value.shape)}"
