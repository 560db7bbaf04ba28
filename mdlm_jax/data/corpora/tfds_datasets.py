"""Datasets of TensorFlow Datasets as corpora, read from ArrayRecord without TensorFlow."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mdlm_jax.data import reading
from mdlm_jax.data.corpora.documents import Corpus, Document
from mdlm_jax.data.corpora.sources import SOURCES

# Examples that one machine of many reads at a time.
_PART = 2**14

SPLITS = ("train", "validation", "test")


def open_tfds(name: str, *, text_field: str, label_field: str, prompt_field: str = "") -> Corpus:
    """A dataset that lies prepared in $TFDS_DATA_DIR (`~/tensorflow_datasets` if that is not set).

    Args:
      name: 'lm1b', 'wiki40b/en', 'lm1b:1.1.0'; the highest version is taken if none is given.
      text_field: the feature that is the text.
      label_field: the feature that is the label, a ClassLabel (whose names are used), a string or
        an integer; '' is no labels.
      prompt_field: the feature that is the prompt of which the text is the response; '' is text
        alone.

    Raises:
      ModuleNotFoundError: TensorFlow Datasets is not installed (when the documents are read).
      ValueError: there is no such dataset, it is not stored as ArrayRecord, or it lacks a field.
    """
    folder = _find(name)
    described = (folder / "dataset_info.json").read_bytes()
    features = (folder / "features.json").read_bytes()
    info = json.loads(described)
    class_names = folder / f"{label_field}.labels.txt"
    labels: tuple[str, ...] | None = ()
    if label_field:
        labels = None
        if class_names.is_file():
            labels = tuple(line.removesuffix("\n") for line in reading.lines(class_names))
    terms = info.get("redistributionInfo", {}).get("license") or "not stated by TensorFlow Datasets"
    return Corpus(
        version=hashlib.sha256(described + features).hexdigest()[:16],
        license=f"{terms}; {name} {info['version']} of TensorFlow Datasets",
        label_names=labels,
        read=lambda cache_dir: _read(
            folder, name, text_field, label_field, prompt_field, labels is None
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Slice:
    """`_PART` of the examples, from `first`."""

    examples: Sequence[dict[str, Any]]
    first: int

    def __len__(self) -> int:
        return min(_PART, len(self.examples) - self.first)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        numbers = range(self.first, self.first + len(self))
        return (self.examples[number] for number in numbers)


@dataclasses.dataclass(frozen=True)
class _Documents:
    """One split; every iteration reads the examples anew."""

    examples: Sequence[dict[str, Any]] | _Slice
    place: str
    text_field: str
    label_field: str
    prompt_field: str
    labels_are_names: bool
    first: int = 0  # the number of the first example

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Document]:
        for number, example in enumerate(self.examples, self.first):
            place = f"{self.place}, example {number}"
            text = self._text(example, self.text_field, place)
            if text.strip():
                prompt = (
                    self._text(example, self.prompt_field, place) if self.prompt_field else None
                )
                yield Document(text, self._label(example, place), prompt, place)

    def parts(self) -> list[Iterable[Document]]:
        firsts = range(0, len(self.examples), _PART)
        return [
            dataclasses.replace(self, examples=_Slice(self.examples, first), first=first)
            for first in firsts
        ]

    def _text(self, example: dict[str, Any], field: str, place: str) -> str:
        return reading.decoded(example[field], f"{place}: {field!r}")

    def _label(self, example: dict[str, Any], place: str) -> int | str:
        if not self.label_field:
            return 0
        label = example[self.label_field]
        if self.labels_are_names:
            is_text = isinstance(label, bytes)
            return self._text(example, self.label_field, place) if is_text else str(label)
        if label < 0:
            raise ValueError(f"{place} has no {self.label_field!r}")
        return int(label)


def _read(
    folder: Path,
    name: str,
    text_field: str,
    label_field: str,
    prompt_field: str,
    labels_are_names: bool,
) -> dict[str, _Documents]:
    try:
        import tensorflow_datasets as tfds  # It takes most of a second.
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"source {name!r} is read by TensorFlow Datasets: pip install 'mdlm_jax[tfds]'"
        ) from None

    builder = tfds.builder_from_directory(folder)
    _check_features(name, builder.info.features, text_field, label_field, prompt_field)
    if "train" not in builder.info.splits:
        raise ValueError(
            f"source {name!r} has no split 'train', but {', '.join(builder.info.splits)}"
        )
    return {
        split: _Documents(
            builder.as_data_source(split=split),
            f"{name}, {split}",
            text_field,
            label_field,
            prompt_field,
            labels_are_names,
        )
        for split in SPLITS
        if split in builder.info.splits
    }


def _check_features(
    name: str, features: Mapping[str, Any], text: str, label: str, prompt: str
) -> None:
    wanted = [("text_field", text, "O", "text")]
    if prompt:
        wanted.append(("prompt_field", prompt, "O", "text"))
    if label:
        wanted.append(("label_field", label, "Oi", "a ClassLabel, text or an integer"))
    for key, field, kinds, accepted in wanted:
        if field not in features:
            raise ValueError(
                f"{key} {field!r} is no field of {name}: it has {', '.join(sorted(features))}"
            )
        feature = features[field]
        if feature.shape != () or np.dtype(feature.np_dtype).kind not in kinds:
            raise ValueError(f"{key} {field!r} of {name} must be {accepted}, it is {feature}")


def _find(name: str) -> Path:
    """The folder of the dataset's highest version, stored as ArrayRecord."""
    root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    base = root / name.replace(":", "/")
    infos = [base / "dataset_info.json", *base.glob("*/dataset_info.json")]
    stored = [
        info.parent
        for info in infos
        if info.is_file() and json.loads(info.read_bytes()).get("fileFormat") == "array_record"
    ]
    if not stored:
        raise ValueError(
            f"source {name!r} is none of {', '.join(SOURCES)}, text_files, and is no dataset "
            f"prepared as ArrayRecord in {root}: pip install 'mdlm_jax[tfds-build]' && tfds build "
            f"{name.partition(':')[0]} --file_format=array_record"
        )
    return max(stored, key=lambda folder: [int(part) for part in folder.name.split(".")])
