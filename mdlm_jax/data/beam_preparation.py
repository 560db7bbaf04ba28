"""Documents to tokens on many machines: an Apache Beam pipeline with the bytes of `encoding`.

    prepare(config, encode=encoder("DataflowRunner", ["project=p", "region=r",
    "temp_location=gs://b/t"]))

Workers read parts of the corpus, pass batches of documents on, and encode each batch by itself. The
tokens of a document do not depend on other documents. Each batch becomes a file that is named by
its place in the corpus. The process that started the pipeline joins them in order and lays out the
rows as it does without Beam. It also trains the tokenizer, on the first characters only.
"""

import contextlib
import io
import json
import logging
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import tokenizers
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from tokenizers import Tokenizer

from mdlm_jax.data import progress
from mdlm_jax.data.config import Config
from mdlm_jax.data.corpora.documents import Document, parts_of, whole
from mdlm_jax.data.stores import Store, is_url, open_store
from mdlm_jax.data.tokens import encoding
from mdlm_jax.data.tokens.encoding import Encode, Encoded

# Beam's runner that needs no other machine.
LOCAL = "DirectRunner"

# Characters of a batch, which a worker holds and passes on at a time.
_BATCH = 2**20


def encoder(runner: str, options: Sequence[str] = ()) -> Encode:
    """Encodes splits as `encoding.encode_splits` does, by a Beam pipeline.

    Args:
      runner: Beam's name of the runner: 'DirectRunner' (this machine), 'DataflowRunner'.
      options: of Beam, 'name=value' or 'name': 'direct_num_workers=8', 'project=my-project'. Any
        runner but the local one needs `temp_location`, which its machines and this one see. Files
        written there are removed again.

    Raises:
      ValueError: Beam does not know the runner or an option, or they do not fit.

    What it returns raises:
      ValueError: a document is wrong, as without Beam.
      OSError: the pipeline failed.
    """
    parsed = _options(runner, options)
    temp = parsed.view_as(GoogleCloudOptions).temp_location
    if runner != LOCAL and not temp:
        raise ValueError(
            f"{runner} needs the option temp_location, a place that all its machines see"
        )

    def encode(
        folder: Path, splits: Mapping[str, Iterable[Document]], tokenizer: Tokenizer
    ) -> dict[str, Encoded]:
        with _batches_place(temp, folder) as place:
            _run(parsed, splits, tokenizer, place)
            store = open_store(place)
            if refused := store.find("refused-*"):
                raise ValueError(store.read(refused[0]).decode())
            return {
                split: encoding.join(folder / f"{split}.raw", _pieces(store, split), tokenizer)
                for split in splits
            }

    return encode


def check_reachable(config: Config, runner: str) -> None:
    """Checks that the machines of a runner can read the text.

    Raises:
      ValueError: Dataflow's machines would have to read files outside of buckets.
    """
    if runner != "DataflowRunner":
        return
    if config.source != "text_files":
        raise ValueError(
            f"{runner} reads files in buckets, source 'text_files': source {config.source!r} lies "
            "on this machine"
        )
    for field in ("files", "validation_files", "test_files"):
        for place in filter(None, map(str.strip, getattr(config, field).split(","))):
            if not is_url(place):
                raise ValueError(
                    f"{field}: {runner} reads files in buckets (gs://...), {place!r} lies on this "
                    "machine"
                )


def _options(runner: str, options: Sequence[str]) -> PipelineOptions:
    words = [f"--{option.removeprefix('--')}" for option in options]
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), _unlogged("apache_beam.options.pipeline_options"):
            parsed = PipelineOptions(words, runner=runner)
            known = parsed.get_all_options()
            unknown = parsed.get_all_options(retain_unknown_options=True).keys() - known.keys()
            beam.Pipeline(options=parsed)
    except SystemExit:  # argparse's way, behind a page of usage
        raise ValueError(
            output.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        ) from None
    except ValueError as error:
        raise ValueError(" ".join(str(error).split())) from None
    if unknown:
        raise ValueError(f"Beam has no option {', '.join(sorted(unknown))}")
    return parsed


@contextlib.contextmanager
def _unlogged(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _batches_place(temp: str | None, folder: Path) -> Iterator[str]:
    """The folder of the workers' output, empty before and removed afterwards."""
    place = f"{temp.rstrip('/') if temp else folder}/batches-{uuid.uuid4().hex}"
    if not is_url(place):
        Path(place).mkdir(parents=True)
    try:
        yield place
    finally:
        open_store(place).remove_all()


def _run(
    options: PipelineOptions,
    splits: Mapping[str, Iterable[Document]],
    tokenizer: Tokenizer,
    place: str,
) -> None:
    parts = [
        _Part(split, number, documents)
        for split, of_split in splits.items()
        for number, documents in enumerate(parts_of(of_split))
    ]
    try:
        with beam.Pipeline(options=options) as pipeline:
            _ = (
                pipeline
                | "parts" >> beam.Create(parts)
                | "to all" >> beam.Reshuffle()
                | "read" >> beam.ParDo(_Read(place))
                | "batches to all" >> beam.Reshuffle()
                | "encode" >> beam.ParDo(_Encode(tokenizer.to_str(), place))
            )
    except Exception as error:  # Runners have no common error class; Beam has logged the traceback.
        raise OSError(f"the Beam pipeline failed: {_last_word(error)}") from error


def _last_word(error: Exception) -> str:
    """The error of a worker: the last line of its traceback, if Beam passes no more on."""
    lines = [line for line in str(error).splitlines() if line and not line[0].isspace()]
    return lines[-1] if lines else type(error).__name__


class _Part(NamedTuple):
    split: str
    number: int
    documents: Iterable[Document]


class _Batch(NamedTuple):
    name: str  # sorts as the batches of a split follow each other
    documents: list[Document]


class _Read(beam.DoFn):
    """A part to its batches."""

    def __init__(self, place: str):
        self._place = place

    def process(self, part: _Part) -> Iterator[_Batch]:
        name = f"{part.split}-{part.number:06}"
        try:
            for number, documents in enumerate(_batches(part.documents)):
                yield _Batch(f"{name}-{number:08}", documents)
        except ValueError as error:
            _refuse(self._place, name, error)


class _Encode(beam.DoFn):
    """A batch to its file."""

    def __init__(self, tokenizer: str, place: str):
        self._tokenizer = tokenizer
        self._place = place
        self._version = tokenizers.__version__

    def setup(self):
        if tokenizers.__version__ != self._version:  # another version may tokenize differently
            raise RuntimeError(
                f"a worker has tokenizers {tokenizers.__version__}, the machine that started the "
                f"pipeline {self._version}"
            )
        self._loaded = Tokenizer.from_str(self._tokenizer)
        self._store = open_store(self._place)

    def process(self, batch: _Batch) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                encoded = encoding.write_tokens(Path(folder) / "raw", batch.documents, self._loaded)
            except ValueError as error:
                _refuse(self._place, batch.name, error)
                return
            self._store.write(f"{batch.name}.npz", _to_bytes(encoded))


def _refuse(place: str, name: str, error: ValueError) -> None:
    """Reports bad input at the end, because trying again would not help."""
    open_store(place).write(f"refused-{name}", str(error).encode("utf-8"))


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in whole(documents):
        batch.append(document)
        size += len(document.text) + len(document.prompt or "") + 1
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _to_bytes(encoded: Encoded) -> bytes:
    described = json.dumps([encoded.label_names, encoded.counts]).encode("utf-8")
    file = io.BytesIO()
    np.savez(
        file,
        ids=encoded.tokens(),
        sizes=encoded.sizes,
        labels=encoded.labels,
        prompts=encoded.prompts,
        told=np.frombuffer(described, np.uint8),
    )
    return file.getvalue()


def _pieces(store: Store, split: str) -> Iterator[tuple[np.ndarray, Encoded]]:
    """The batches of a split, in order."""
    names = store.find(f"{split}-*.npz")
    with progress.bar(f"joining {split}", len(names), "batches") as advance:
        for name in names:
            with np.load(io.BytesIO(store.read(name))) as file:
                label_names, counts = json.loads(file["told"].tobytes())
                ids = file["ids"]
                yield (
                    ids,
                    Encoded(
                        Path(name),
                        ids.dtype,
                        file["sizes"],
                        file["labels"],
                        tuple(label_names),
                        counts,
                        file["prompts"],
                    ),
                )
            advance(1, MB=ids.nbytes / 1e6)
