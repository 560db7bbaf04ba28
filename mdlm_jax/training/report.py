"""The reports of a run: records in the metrics file, lines and a progress bar."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress

from mdlm_jax.training.metrics import MetricsWriter


class Report:
    """Collects the metrics of single steps into records."""

    def __init__(
        self,
        metrics: MetricsWriter,
        *,
        steps: int,
        log_every: int,
        max_bad_steps: int,
        tokens_per_step: int,
        summarize: Callable[[Any], Mapping[str, Any]],
    ):
        self._metrics = metrics
        self._steps = steps
        self._log_every = log_every
        self._max_bad_steps = max_bad_steps
        self._tokens_per_step = tokens_per_step
        self._summarize = summarize
        self._console = rich.console.Console(stderr=True, quiet=jax.process_index() != 0)
        self._bar = rich.progress.Progress(
            console=self._console, disable=not self._console.is_terminal
        )
        self._task = self._bar.add_task("compiling", total=steps)
        self._mark: float | None = None  # when the last step was read; None until the first
        self._clear()

    @contextlib.contextmanager
    def running(self, start: int) -> Iterator["Report"]:
        """Shows the bar, from step `start`."""
        self._bar.reset(self._task, completed=start)
        with self._bar:
            yield self

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time within from the throughput."""
        yield
        if self._mark is not None:
            self._mark = time.perf_counter()

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Waits for the metrics of `step`, reads them, and writes the record that they complete.

        Raises:
          FloatingPointError: if too many updates in a row were skipped.
        """
        metrics = jax.device_get(metrics)
        now = time.perf_counter()
        if self._mark is not None:
            self._seconds += now - self._mark
            self._timed += 1
        self._mark = now
        self._bar.update(self._task, completed=step, description="training")
        if self._timed:
            tokens_per_second = self._tokens_per_step * self._timed / self._seconds
            self._bar.update(self._task, description=f"{tokens_per_second:,.0f} tokens/s")

        bad_steps = int(metrics["bad_steps"])
        if bad_steps >= self._max_bad_steps:
            raise FloatingPointError(
                f"step {step}: {bad_steps} updates in a row were skipped because the loss or its "
                f"gradient is not finite (loss {metrics['loss']}, gradient norm "
                f"{metrics['grad_norm']})"
            )
        if bad_steps:
            self._skipped += 1
        else:
            self._good.append(metrics)
        if step % self._log_every == 0 or step == self._steps:
            self.record(step, "train", self._summary(step))
            self._clear()

    def record(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Writes a record to the metrics file and a short form of it to the terminal."""
        self._metrics.write(step, kind, values)
        shown = "  ".join(
            _short(name, value) for name, value in values.items() if np.ndim(value) == 0
        )
        line = f"{kind}  step {step}/{self._steps}  {shown}"
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _summary(self, step: int) -> dict[str, Any]:
        summary: dict[str, Any] = {}
        if self._good:
            kept = [{name: m[name] for name in ("loss", "grad_norm", "aux")} for m in self._good]
            mean = jax.tree.map(lambda *x: np.mean(x, axis=0, dtype=np.float64), *kept)
            summary = {"loss": float(mean["loss"]), "grad_norm": float(mean["grad_norm"])}
            summary.update(self._summarize(mean["aux"]))
            if "learning_rate" in self._good[-1]:
                summary["learning_rate"] = float(self._good[-1]["learning_rate"])
        summary["skipped"] = self._skipped
        if self._timed:
            pace = self._seconds / self._timed
            summary["tokens_per_second"] = self._tokens_per_step / pace
            summary["seconds_left"] = (self._steps - step) * pace
        return summary | peak_memory()

    def _clear(self) -> None:
        self._good: list[Mapping[str, Any]] = []
        self._skipped = self._timed = 0
        self._seconds = 0.0


def peak_memory() -> dict[str, int]:
    """The peak memory of this process so far, in bytes.

    Returns:
      `host_memory_bytes`, the peak of the resident set, and `device_memory_bytes`, that of the
      fullest local device, which is missing if devices do not report it (CPU).
    """
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    peaks = {"host_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    if devices := [
        stats["peak_bytes_in_use"] for stats in statistics if "peak_bytes_in_use" in stats
    ]:
        peaks["device_memory_bytes"] = max(devices)
    return peaks


def _short(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes')} {value / 2**30:.2f} GiB"
    if not isinstance(value, float):
        return f"{name} {value}"
    return f"{name} {value:,.0f}" if abs(value) >= 1000 else f"{name} {value:.4g}"
