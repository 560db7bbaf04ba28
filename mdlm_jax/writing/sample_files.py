"""Samples as records, and their files: pages, and JSON lines that a stopped job continues."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.data import json_text
from mdlm_jax.host import paths
from mdlm_jax.writing.filling import Filled
from mdlm_jax.writing.prompts import Prompt

Record = dict[str, Any]

# What distinguishes the samples of a job; "text" and "evaluations" follow from all else.
_RESULTS = ("text", "evaluations")
_REQUIRED = ("prompt", "text", "strategy", "steps", "seed", "sample")


def record(
    settings: Mapping[str, Any],
    filled: Filled,
    *,
    fill: np.ndarray,
    shown: np.ndarray,
    tokenizer: Tokenizer,
    with_tokens: bool,
) -> Record:
    """A sample for JSON: its settings, "text", "evaluations", and perhaps "tokens".

    Args:
      settings: "prompt", and the other fields of the request.
      filled: the row.
      fill: bool[L], the positions that were wanted.
      shown: bool[L], the positions that are text.
      tokenizer: of the model.
      with_tokens: for pages, `[piece, step, log_prob]` of each token (see `evaluation.animation`).
    """
    shown = text_places(filled, fill, shown)
    made = {
        "prompt": settings["prompt"],
        "text": data.decode(tokenizer, filled.tokens[shown]),
        **settings,
        "evaluations": filled.evaluations,
    }
    if with_tokens:
        pieces = data.token_pieces(tokenizer, filled.tokens[shown])
        steps, log_probs = filled.step[shown].tolist(), filled.log_prob[shown].tolist()
        written = zip(pieces, steps, log_probs, strict=True)
        made["tokens"] = [[piece, step, round(log_prob, 4)] for piece, step, log_prob in written]
    return made


def text_places(filled: Filled, fill: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """bool[L], the tokens of a row that are its text; arguments as in `record`.

    A gap that was not written lies behind an end of text.
    """
    return shown & ~(fill & (filled.step < 0))


def line(record: Record, encoding: str = "utf-8") -> str:
    """A record as a line of a file, without tokens; what the encoding lacks is escaped."""
    kept = {name: value for name, value in record.items() if name != "tokens"}
    return _json(kept, encoding)


def name_of(prompt: Prompt, sample: int) -> Record:
    """The fields that say which sample of a job a record is."""
    others = {"label": prompt.label, "messages": prompt.messages}
    given = {name: value for name, value in others.items() if value is not None}
    return {"prompt": prompt.text, **given, "sample": sample}


def begin(path: Path, prompts: Sequence[Prompt], samples: int, settings: Mapping[str, Any]) -> int:
    """Makes the file, or finds how many samples it holds; a half-written last line is dropped.

    A pipe or a device holds none.

    Args:
      path: of the file.
      prompts: of the job, whose samples stand in the file one prompt after the other.
      samples: of each prompt.
      settings: fields that every record of the job has.

    Raises:
      ValueError: it holds something else, or samples of other prompts or settings; the first
        difference is named.
      OSError: it cannot be read or written.
    """
    if paths.is_stream(path):
        return 0
    with path.open("a+b") as file:
        file.seek(0)
        whole, end, _ = file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if end else []
        if len(lines) > len(prompts) * samples:
            raise ValueError(
                f"{path} holds {len(lines):,} samples, this job has {len(prompts) * samples:,}: "
                "take another file"
            )
        for number, each in enumerate(lines):
            expected = {**name_of(prompts[number // samples], number % samples), **settings}
            _check(each, expected, f"{path}, line {number + 1}")
        file.truncate(len(whole) + len(end))
    return len(lines)


@contextlib.contextmanager
def appending(path: Path) -> Iterator[Callable[[Sequence[Record]], None]]:
    """Yields a function that appends records. When it returns, no crash can lose them."""
    with paths.appending(path) as file:

        def append(records: Sequence[Record]) -> None:
            file.write("".join(line(record) + "\n" for record in records).encode())
            paths.settle(file)

        yield append


def write_page(path: Path, samples: Sequence[Record]) -> Path:
    """A page that shows how the samples were written."""
    from mdlm_jax.pages import animation

    paths.write(path, animation.page(samples, "mdlm_jax samples"))
    return path


def write_into(workdir: epath.Path, samples: Sequence[Record]) -> list[Path]:
    """`samples.txt`, `samples.json` and the report of a run's folder."""
    from mdlm_jax.pages.report import write_report  # matplotlib: seconds

    text = "\n\n".join(made["text"] for made in samples)
    paths.write(workdir / "samples.txt", text + "\n")
    paths.write(workdir / "samples.json", _json(list(samples), "utf-8") + "\n")
    return [workdir / "samples.txt", workdir / "samples.json", write_report(workdir)]


def check_writable(workdir: epath.Path) -> None:
    """Checks at once that `write_into` can write.

    Raises:
      ValueError: as `paths.check_output`.
    """
    for name in ("samples.txt", "samples.json", "report.html"):
        paths.check_output(workdir / name)


def _json(value: Any, encoding: str) -> str:
    """JSON as readable as the encoding allows; lone surrogates are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _check(line: bytes, expected: Record, where: str) -> None:
    try:
        record = json_text.parse(line.decode("utf-8"), where)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not record.keys() >= {*_REQUIRED}:
        raise ValueError(f"{where} is no sample: take another file")
    found = {name: value for name, value in record.items() if name not in _RESULTS}
    for name in expected | found:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{where} is a sample of another job: {name} is {_told(found.get(name))} there, "
                f"{_told(expected.get(name))} here: take another file"
            )


def _told(value: Any) -> str:
    if value is None:
        return "not set"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
