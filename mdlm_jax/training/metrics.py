"""Metrics on disk: `metrics.jsonl` always, TensorBoard and Weights & Biases by option."""

import html
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from mdlm_jax.data import json_text
from mdlm_jax.host import paths
from mdlm_jax.training import best, weights_and_biases

FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends records `{"step": 10, "kind": "train", "loss": 3.2, ...}`, one JSON object a line.

    Process 0 writes, and in the others every method does nothing. A number that is not finite
    becomes null.

    Attributes:
      evaluations: the records of earlier evaluations, up to the restored step.
    """

    def __init__(self, directory: str | Path, *, step: int = 0, tensorboard: bool = False):
        """Opens the file for a run that resumes from `step`, 0 for a new one.

        Later records are dropped, and so is a half-written last line.

        Args:
          directory: made if it does not exist.
          step: the restored step.
          tensorboard: also writes event files beside the JSONL, with `tensorboardX`: numbers as
            scalars, strings as texts, under `kind/name`.

        Raises:
          ImportError: `tensorboard` is asked for and not installed.
          ValueError: a line of the file is no record; it is named.
        """
        self._file = self._events = self._wandb = None
        self._found: set[str] = set()  # kinds of the records at `step`
        self.evaluations: list[dict[str, Any]] = []
        self._directory = directory = epath.Path(directory)
        if jax.process_index() != 0:
            return
        directory.mkdir(parents=True, exist_ok=True)
        if tensorboard:
            self._events = _summary_writer(directory, step)
        path = directory / FILE
        kept = _truncate(path, step)
        self._found = {record["kind"] for record in kept if record["step"] == step}
        self.evaluations = [record for record in kept if record["kind"] == best.KIND]
        self._file = path.open("a") if paths.is_local(path) else _Object(path)

    def open_wandb(self, project: str, config: Mapping[str, Any] | None = None) -> None:
        """Sends the records that follow to Weights & Biases, too.

        Args:
          project: there; '' sends none.
          config: of the run, which is shown beside them.

        Raises:
          ImportError, ValueError, RuntimeError: as `weights_and_biases.Run`.
        """
        if project and self._file is not None:
            self._wandb = weights_and_biases.Run(self._directory, project, config)

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Writes one record at once. Values are JSON's, or scalars of NumPy or JAX."""
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
        if self._wandb is not None:
            self._wandb.write(step, kind, values)

    def lacks(self, kind: str) -> bool:
        """Whether the file had no record of this kind at the restored step. Only process 0 knows.

        A run may end between a checkpoint and its records.
        """
        return self._file is not None and kind not in self._found

    def sync(self) -> None:
        """Makes sure that all records so far are written, before a checkpoint that follows them.

        In a bucket a file cannot grow and must be rewritten, so the last records otherwise wait for
        up to 10 seconds.
        """
        if isinstance(self._file, _Object):
            self._file.upload()

    def close(self, *, failed: bool = False) -> None:
        """Closes the files, and reports to Weights & Biases whether the run failed."""
        for file in (self._file, self._events):
            if file is not None:
                file.close()
        if self._wandb is not None:
            self._wandb.close(failed=failed)

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)


def require_tensorboard() -> None:
    """Checks at once what `MetricsWriter(tensorboard=True)` needs.

    Raises:
      ImportError: tensorboardX is not installed.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        raise ImportError(
            "training.tensorboard needs tensorboardX: pip install 'mdlm_jax[tensorboard]'"
        ) from None


def read_metrics(directory: str | Path) -> list[dict[str, Any]]:
    """The records of a run in the order written; only whole ones, if it is still writing.

    Raises:
      ValueError: a line is no record; the file and the line are named.
    """
    path = epath.Path(directory) / FILE
    return [record for _, record in _records(path)]


def _records(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The whole lines and their records. A last line without an end is being written."""
    whole, _, _ = path.read_text().rpartition("\n")
    for number, line in enumerate(whole.split("\n") if whole else [], 1):
        record = json_text.parse(line, f"{path}, line {number}")
        if not isinstance(record, dict) or not {"step", "kind"} <= record.keys():
            raise ValueError(f"{path}, line {number} is no record with a step and a kind")
        yield line, record


class _Object:
    """Appends to an object of a bucket by rewriting it."""

    def __init__(self, path: epath.Path):
        self._path = path
        self._text = self._uploaded = path.read_text() if path.exists() else ""
        self._time = 0.0

    def write(self, text: str) -> None:
        self._text += text

    def flush(self) -> None:
        if time.monotonic() - self._time > 10:  # more than one write a second is refused
            self.upload()

    def upload(self) -> None:
        if self._text != self._uploaded:
            self._path.write_text(self._text)
            self._uploaded, self._time = self._text, time.monotonic()

    def close(self) -> None:
        self.upload()


def _truncate(path: epath.Path, step: int) -> list[dict[str, Any]]:
    """Drops records later than `step`, and returns the others."""
    if not path.exists():
        return []
    kept = [(line, record) for line, record in _records(path) if record["step"] <= step]
    paths.write(path, "".join(f"{line}\n" for line, _ in kept))
    return [record for _, record in kept]


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy and JAX
        value = value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _verbatim(text: str) -> str:
    """Markdown, which TensorBoard reads, that shows the text as it is."""
    escaped = re.sub(r"([\\`*_{}\[\]()#+\-.!|])", r"\\\1", html.escape(text, quote=False))
    return escaped.replace("\n", "  \n")


def _summary_writer(directory: epath.Path, step: int) -> Any:
    require_tensorboard()
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(directory), purge_step=step + 1)
