"""Files of text as a corpus, wherever fsspec reads: .txt and .jsonl, plain or gzipped, and tables.

Tables are .parquet and the folders that `save_to_disk` of Hugging Face `datasets` writes.
"""

import dataclasses
import glob
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mdlm_jax.data import json_text, reading
from mdlm_jax.data.corpora import saved_datasets, tables
from mdlm_jax.data.corpora.chat import ChatTemplate, check_answered, check_messages
from mdlm_jax.data.corpora.documents import Corpus, Document, without_blank

# Of what makes documents of bytes: raise it whenever that makes others of the same files.
_READER = "2"

_WITH_FIELDS = ".jsonl, .parquet or saved datasets"

# How file systems say which state of a file this is (local; S3; Google Cloud Storage; memory).
_STAMPS = ("mtime", "etag", "ETag", "generation", "LastModified", "created")


class _File(NamedTuple):
    """One file: where it lies, and what tells its state."""

    at: reading.File
    state: str

    @property
    def name(self) -> str:
        return self.at.name

    @property
    def kind(self) -> str:
        return reading.kind(self.at.path)

    @property
    def has_fields(self) -> bool:
        return self.kind != "text"


def open_text_files(
    globs: Mapping[str, str],
    *,
    documents: str,
    text_field: str,
    label_field: str,
    prompt_field: str = "",
    messages_field: str = "",
    template: ChatTemplate | None = None,
) -> Corpus:
    """Finds the files; their contents are read when the documents are.

    Args:
      globs: comma-separated globs by the name of the config's field ('files', 'validation_files',
        'test_files'); an empty one is no split. 'files' may name a saved DatasetDict, which brings
        its own splits.
      documents: what one document of a .txt is: 'file', 'paragraph' or 'line'.
      text_field: the text of a line of a .jsonl, or of a row of a table.
      label_field: its label, a string or an integer; '' is no labels.
      prompt_field: the prompt of which the text is the response; '' is text alone.
      messages_field: instead of both, a list of messages that ends with the assistant's response;
        '' is none.
      template: writes the messages out.

    Returns:
      The corpus. Its version follows the name, size and state (time of change, ETag or generation)
      of every file, and the template. Documents of nothing but white space are skipped, and pairs
      whose response is that. As a shell does, a glob passes over hidden files.

    Raises:
      ModuleNotFoundError: the package that reads this file system is not installed.
      ValueError: a glob matches nothing, or something that cannot be read; it is named. Also while
        the documents are read: a file is empty, broken or no text (see `reading`), or a line
        of a .jsonl is not as it should be.
    """
    found = _find_splits(globs)
    files = [file for split in found.values() for file in split]
    _refuse_shared(found)
    if of_tables := [file for file in files if file.kind in ("parquet", "arrow")]:
        tables.require_pyarrow(of_tables[0].name)
    if documents != "file" and all(file.has_fields for file in files):
        raise ValueError(
            f"documents is for .txt: a line of a .jsonl, or a row of a table, is one, "
            f"got {documents!r}"
        )
    needed = {
        "label_field": label_field,
        "prompt_field": prompt_field,
        "messages_field": messages_field,
    }
    for key, field in needed.items():
        if field and (plain := [file.name for file in files if not file.has_fields]):
            raise ValueError(f"{key} {field!r} needs {_WITH_FIELDS}, and {plain[0]} is not")
    if text_field != "text" and not any(file.has_fields for file in files):
        raise ValueError(f"text_field is for {_WITH_FIELDS}: there is none, got {text_field!r}")
    written = template.text if template else ""
    state = "\n".join([_READER, *(file.state for file in files), *filter(None, [written])])
    fields = documents, text_field, label_field, prompt_field, messages_field, template
    return Corpus(
        version=hashlib.sha256(state.encode()).hexdigest()[:16],
        license="not known: that of the files",
        label_names=None if label_field else (),
        read=lambda cache_dir: {
            split: _Documents(tuple(of_split), *fields) for split, of_split in found.items()
        },
        chat_template=written,
    )


@dataclasses.dataclass(frozen=True)
class _Documents:
    """The documents of some files, read anew each time they are iterated over."""

    files: tuple[_File, ...]
    documents: str
    text_field: str
    label_field: str
    prompt_field: str
    messages_field: str
    template: ChatTemplate | None

    def __iter__(self) -> Iterator[Document]:
        for file in self.files:
            found = self._of_records(file) if file.has_fields else self._of_txt(file)
            yield from without_blank(found)

    def parts(self) -> list[Iterable[Document]]:
        return [dataclasses.replace(self, files=(file,)) for file in self.files]

    def _of_txt(self, file: _File) -> Iterator[Document]:
        if self.documents == "file":
            return _in_pieces(file)
        lines = reading.lines(file.at)
        if self.documents == "line":
            texts = (line.removesuffix("\n") for line in lines)
        else:
            paragraphs = itertools.groupby(lines, key=lambda line: bool(line.strip()))
            texts = ("".join(each).removesuffix("\n") for is_text, each in paragraphs if is_text)
        return (Document(text, 0, place=file.name) for text in texts)

    def _of_records(self, file: _File) -> Iterator[Document]:
        if file.kind == "jsonl":
            records = json_text.records(file.at)
        else:
            records = tables.records(file.at, self._fields())
        for place, record in records:
            prompt, text = self._texts(record, place)
            label: int | str = 0
            if self.label_field:
                value = _field(record, "label_field", self.label_field, place)
                label = json_text.label(value, f"{place}: label_field {self.label_field!r}")
            yield Document(text, label, prompt, place)

    def _fields(self) -> dict[str, str]:
        """The fields that are read, by their keys."""
        keys = ["messages_field"] if self.template else ["prompt_field", "text_field"]
        return {key: getattr(self, key) for key in [*keys, "label_field"] if getattr(self, key)}

    def _texts(self, record: dict[str, Any], place: str) -> tuple[str | None, str]:
        """The prompt, if the line is a pair, and the text."""
        if self.template:
            value = _field(record, "messages_field", self.messages_field, place)
            place = f"{place}: messages_field {self.messages_field!r}"
            messages = check_answered(check_messages(value, place), place)
            return self.template.pair(messages, place)
        prompt = self._text(record, "prompt_field", place) if self.prompt_field else None
        return prompt, self._text(record, "text_field", place)

    def _text(self, record: dict[str, Any], key: str, place: str) -> str:
        name = getattr(self, key)
        text, place = _field(record, key, name, place), f"{place}: {key} {name!r}"
        if not isinstance(text, str):
            raise ValueError(f"{place} must be a string, got {json_text.shown(text)}")
        return json_text.check_characters(text, place)


def _in_pieces(file: _File) -> Iterator[Document]:
    """A file that is one document, of which a piece is in memory at a time."""
    pieces = filter(None, reading.pieces(file.at))
    last = next(pieces)  # an empty file is refused
    for piece in pieces:
        yield Document(last, 0, place=file.name, more=True)
        last = piece
    yield Document(last, 0, place=file.name)


def _field(record: dict[str, Any], key: str, name: str, place: str) -> Any:
    if name not in record:
        raise ValueError(
            f"{place} has no {key} {name!r}: its fields are {', '.join(record) or 'none'}"
        )
    return record[name]


def _find_splits(globs: Mapping[str, str]) -> dict[str, list[_File]]:
    """The files of each split; `globs` as of `open_text_files`."""
    of_field = {"files": "train", "validation_files": "validation", "test_files": "test"}
    found: dict[str, list[_File]] = {}
    for field, value in globs.items():
        if not value.strip():
            continue
        for split, files in _find(field, value).items():
            split = split or of_field[field]
            if split in found and field != "files":
                raise ValueError(
                    f"{field} does nothing: {globs['files']} has the split {split!r}; leave it at "
                    f"'', got {value!r}"
                )
            found.setdefault(split, []).extend(files)
    return found


def _find(field: str, globs: str) -> dict[str, list[_File]]:
    """The files of comma-separated globs, in their order, each glob's sorted, none twice.

    Returns:
      Files by split; '' is that of the field.
    """
    found: dict[str, dict[str, _File]] = {}
    # What exists is taken literally: names may hold commas and brackets.
    is_one = "://" not in globs and reading.locate(globs.strip()).exists()
    parts = [globs] if is_one else globs.split(",")
    for pattern in filter(None, (part.strip() for part in parts)):
        root = _root(field, pattern)
        try:
            paths = [root.path] if root.exists() else _matching(root)
        except OSError as error:  # of a bucket, the network's words only
            raise ValueError(f"{field}: cannot read {pattern!r}: {error}") from None
        if not paths:
            raise ValueError(f"{field}: {pattern!r} matches no file")
        for path in paths:
            for split, files in _at(field, root.system, path).items():
                of_split = found.setdefault(split, {})
                for file in files:
                    of_split.setdefault(file.name, file)
    return {split: list(files.values()) for split, files in found.items()}


def _root(field: str, pattern: str) -> reading.File:
    try:
        return reading.locate(pattern)
    except ImportError as error:
        wanted = "pip install 'mdlm_jax[gcs]'" if pattern.startswith("gs://") else str(error)
        raise ModuleNotFoundError(f"{field}: to read {pattern!r}: {wanted}") from None
    except ValueError as error:
        raise ValueError(f"{field}: cannot read {pattern!r}: {error}") from None


def _matching(root: reading.File) -> list[str]:
    """What a glob finds, sorted; hidden files only where it asks for them, as in a shell."""
    asked = PurePosixPath(root.path).parts
    given = sum(1 for _ in itertools.takewhile(lambda part: not glob.has_magic(part), asked))
    while root.is_local and given < len(asked) and Path(*asked[: given + 1]).exists():
        given += 1  # a folder whose name holds brackets
    literal, pattern = asked[:given], asked[given:]
    found = sorted(root.system.glob(str(PurePosixPath(*map(glob.escape, literal), *pattern))))
    if any(part.startswith(".") for part in pattern):
        return found
    return [
        path
        for path in found
        if not any(part.startswith(".") for part in PurePosixPath(path).parts[given:])
    ]


def _at(field: str, system: Any, path: str) -> dict[str, list[_File]]:
    """The file at a path, or those of a saved dataset, by split as `_find` has them."""
    at = reading.File(system, path, "")
    at = at._replace(name=path if at.is_local else system.unstrip_protocol(path))
    if system.info(path)["type"] != "directory":
        if not reading.kind(path):
            packed = ", ".join((*reading.TEXT, *reading.JSONL))
            raise ValueError(
                f"{field}: {at.name} must end in one of {packed}, perhaps with .gz, or in "
                f"{', '.join((*reading.PARQUET, *reading.ARROW))}"
            )
        return {"": [_stat(at)]}
    if not saved_datasets.is_saved(at):
        raise ValueError(
            f"{field}: {at.name} is a folder: name its files, {at.name.rstrip('/')}/*.txt"
        )
    try:
        splits = saved_datasets.splits(at)
        if "" not in splits and field != "files":
            one = next(iter(splits))
            raise ValueError(
                f"{at.name} holds the splits {', '.join(splits)}: name the folder of one, such as "
                f"{at.name.rstrip('/')}/{one}"
            )
        return {split: [_stat(file) for file in files] for split, files in splits.items()}
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{field}: {error}") from None


def _stat(at: reading.File) -> _File:
    info = at.system.info(at.path)
    stamp = next((str(info[key]) for key in _STAMPS if key in info), "")
    return _File(at, json.dumps([at.name, info["size"], stamp]))


def _refuse_shared(found: Mapping[str, Iterable[_File]]) -> None:
    seen: dict[str, str] = {}
    for split, files in found.items():
        for file in files:
            if seen.setdefault(file.name, split) != split:
                raise ValueError(
                    f"{split}_files: {file.name} is among those of {seen[file.name]} too"
                )
