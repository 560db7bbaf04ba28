"""Metrics on disk: `metrics.jsonl` always, TensorBoard by option."""

import html
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends records `{"step": 10, "kind": "train", "loss": 3.2, ...}`, one JSON object a line.

    Process 0 writes; in the others every method does nothing. A number that is not finite becomes
    null, which JSON has.
    """

    def __init__(self, directory: str | Path, *, step: int = 0, tensorboard: bool = False):
        """Opens the file for a run that goes on from `step`, 0 for a new one.

        Later records are dropped, a half-written last line too. So are the records at `step` of
        other kinds than "train": `fit` evaluates a restored step again, for the run may have
        ended between the checkpoint and the evaluation.

        Args:
          directory: made if it does not exist.
          step: the restored step.
          tensorboard: also writes event files beside the JSONL, with `tensorboardX`: numbers as
            scalars, strings as texts, under `kind/name`.

        Raises:
          ImportError: if `tensorboard` is asked for and not installed.
        """
        self._file = self._events = None
        if jax.process_index() != 0:
            return
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            self._events = _summary_writer(directory, step)
        _truncate(directory / FILE, step)
        self._file = (directory / FILE).open("a")

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Writes one record, at once. Values are what JSON holds, or scalars of NumPy or JAX."""
        if self._file is None:
            return
        values = {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{kind}/{name}", value, step)
                elif isinstance(value, str):
                    self._events.add_text(f"{kind}/{name}", _verbatim(value), step)
            self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        for file in (self._file, self._events):
            if file is not None:
                file.close()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(directory: str | Path) -> list[dict[str, Any]]:
    """The records of a run, in the order written."""
    return [json.loads(line) for line in (Path(directory) / FILE).read_text().splitlines()]


def _truncate(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # or the writer was killed within it
            record = json.loads(line)
            if record["step"] < step or (record["step"] == step and record["kind"] == "train"):
                kept.append(line)
    replacement = path.with_suffix(".tmp")
    replacement.write_text("".join(kept))
    replacement.replace(path)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy and JAX
        value = value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _verbatim(text: str) -> str:
    """Markdown, which TensorBoard reads, that shows the text as it is."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+\-.!|])", r"\\\1", html.escape(text, quote=False))
    return escaped.replace("\n", "  \n")


def _summary_writer(directory: Path, step: int) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ImportError(
            "tensorboard=True needs tensorboardX: pip install 'mdlm_jax[tensorboard]'"
        ) from None
    return SummaryWriter(str(directory), purge_step=step)
