"""Repetitions, the ceiling they are measured against, and the JSON line a figure is told in."""

import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

REPEATS = 3
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch")


class Times(NamedTuple):
    """Milliseconds of one call, over the repetitions."""

    median: float
    lowest: float
    highest: float


class Ceiling(NamedTuple):
    """What this device reaches with a matrix product alone: TFLOP/s, and of which product."""

    tflops: float
    product: str


def repeated(
    call: Callable[[], Any],
    *,
    calls: int,
    repeats: int = REPEATS,
    wait: Callable[[Any], Any] = jax.block_until_ready,
) -> Times:
    """Times `call`, which was compiled before; the device is waited for once a repetition.

    Args:
      call: starts some work and returns something to wait for.
      calls: of a repetition.
      repeats: repetitions; one more goes before them, untimed.
      wait: for what the last call returned.
    """
    times = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        for _ in range(calls):
            out = call()
        wait(out)
        times.append(1e3 * (time.perf_counter() - begun) / calls)
    return Times(statistics.median(times[1:]), min(times[1:]), max(times[1:]))


def matrix_ceiling() -> Ceiling:
    """The speed of a product of random square matrices: of size 8192 in bfloat16; on CPUs smaller.

    Random, because a GPU that multiplies zeros draws less power and runs faster.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, dtype, calls = (1024, jnp.float32, 5) if on_cpu else (8192, jnp.bfloat16, 50)
    left, right = (jax.random.normal(jax.random.key(i), (size, size), dtype) for i in range(2))
    multiply = jax.jit(jnp.matmul)
    return ceiling_of(repeated(lambda: multiply(left, right), calls=calls), size, dtype.__name__)


def ceiling_of(times: Times, size: int, dtype: str) -> Ceiling:
    """The ceiling from the times of a square product."""
    return Ceiling(tflops(2 * size**3, times.median), f"{size}^3 {dtype}")


def compiled(fn: Callable, *args: Any, **kwargs: Any) -> tuple[Callable, float]:
    """A jitted function compiled for these arguments, and the seconds that took."""
    begun = time.perf_counter()
    program = fn.lower(*args, **kwargs).compile()
    return program, time.perf_counter() - begun


def planned_bytes(program: Any) -> int:
    """The bytes that a compiled program holds at its peak, arguments and results among them."""
    plan = program.memory_analysis()
    held = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return held + plan.temp_size_in_bytes


def tflops(flops: float, ms: float) -> float:
    """TFLOP/s."""
    return flops / ms / 1e9


def tell(
    figure: str,
    times: Times,
    *,
    flops: float | None = None,
    ceiling: Ceiling | None = None,
    device: str | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Prints a figure as one JSON line, and returns it.

    Args:
      figure: its name.
      times: of a call.
      flops: operations of a call; with them the line tells the TFLOP/s, and their share of the
        ceiling.
      ceiling: of this run.
      device: its name; JAX's first device by default.
      **fields: more of the line.
    """
    line = {"figure": figure, **fields}
    line |= {"ms": times.median, "ms_lowest": times.lowest, "ms_highest": times.highest}
    if flops is not None:
        line |= {"flops": flops, "tflops": tflops(flops, times.median)}
    if ceiling is not None:
        line |= {"ceiling_tflops": ceiling.tflops, "ceiling_product": ceiling.product}
    if flops is not None and ceiling is not None:
        line["share_of_ceiling"] = line["tflops"] / ceiling.tflops
    line["device"] = device or jax.devices()[0].device_kind
    line["versions"] = _versions()
    exact = {"flops": flops} if flops is not None else {}
    line = {name: _rounded(value) for name, value in line.items()} | exact
    print(json.dumps(line), flush=True)
    return line


def shown(shape: Any) -> dict[str, Any]:
    """What a line tells of a `shapes.Shape`."""
    encoder = shape.encoder
    told = ("attention_backend", "remat", "scan", "dtype")
    return {
        "rows": shape.rows,
        "length": shape.length,
        **{name: getattr(encoder, name) for name in told},
    }


def _versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
