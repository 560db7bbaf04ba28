"""Files of text as a corpus: .txt and .jsonl, plain or gzipped, wherever fsspec reads."""

import gzip
import hashlib
import itertools
import json
import logging
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import fsspec

from mdlm_jax.data.chat import ChatTemplate, check_answered, check_messages
from mdlm_jax.data.corpora import Corpus, Document

# It tells pages of what it raises anyway.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

# How file systems say which state of a file this is (local; S3; Google Cloud Storage; memory).
_STAMPS = ("mtime", "etag", "ETag", "generation", "LastModified", "created")


class _File(NamedTuple):
    """One file: where it lies, what messages call it, and what tells its state."""

    system: Any
    path: str
    name: str
    state: str

    @property
    def is_jsonl(self) -> bool:
        return self.path.removesuffix(".gz").endswith(".jsonl")


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
        'test_files'); an empty one is no split.
      documents: what one document of a .txt is: 'file', 'paragraph' or 'line'.
      text_field: the text of a .jsonl line.
      label_field: its label, a string or an integer; '' is no labels.
      prompt_field: the prompt of which the text is the response; '' is text alone.
      messages_field: instead of both, a list of messages that ends with the assistant's response;
        '' is none.
      template: writes the messages out.

    Returns:
      The corpus. Its version follows the name, size and state (time of change, ETag or generation)
      of every file, and the template. Documents of nothing but white space are skipped, and pairs
      whose response is that.

    Raises:
      ModuleNotFoundError: the package that reads this file system is not installed.
      ValueError: a glob matches nothing, or something that cannot be read; it is named. Also while
        the documents are read: a file is empty, broken or not UTF-8, or a line of a .jsonl is not
        as it should be.
    """
    splits = {"files": "train", "validation_files": "validation", "test_files": "test"}
    found = {splits[field]: _find(field, value) for field, value in globs.items() if value.strip()}
    files = [file for split in found.values() for file in split]
    _refuse_shared(found)
    if documents != "file" and all(file.is_jsonl for file in files):
        raise ValueError(f"documents is for .txt: every line of a .jsonl is one, got {documents!r}")
    needed = {
        "label_field": label_field,
        "prompt_field": prompt_field,
        "messages_field": messages_field,
    }
    for key, field in needed.items():
        if field and (plain := [file.name for file in files if not file.is_jsonl]):
            raise ValueError(f"{key} {field!r} needs .jsonl files, and {plain[0]} is not")
    if text_field != "text" and not any(file.is_jsonl for file in files):
        raise ValueError(f"text_field is for .jsonl, and there is none, got {text_field!r}")
    written = template.text if template else ""
    state = "\n".join([*(file.state for file in files), *filter(None, [written])])
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


@dataclass(frozen=True)
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
            found = self._of_jsonl(file) if file.is_jsonl else self._of_txt(file)
            yield from (document for document in found if document.text.strip())

    def _of_txt(self, file: _File) -> Iterator[Document]:
        lines = _lines(file)
        if self.documents == "line":
            texts = (line.removesuffix("\n") for line in lines)
        elif self.documents == "file":
            texts = ("".join(each) for each in (lines,))
        else:
            paragraphs = itertools.groupby(lines, key=lambda line: bool(line.strip()))
            texts = ("".join(each).removesuffix("\n") for is_text, each in paragraphs if is_text)
        return (Document(text, 0) for text in texts)

    def _of_jsonl(self, file: _File) -> Iterator[Document]:
        for number, line in enumerate(_lines(file), 1):
            if line.strip():
                yield self._parse(line, f"{file.name}, line {number}")

    def _parse(self, line: str, place: str) -> Document:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{place} must be an object with fields, got {line.strip()[:40]!r}")
        prompt, text = self._texts(record, place)
        label = 0
        if self.label_field:
            accepted = (str, int), "a string or an integer"
            label = str(_field(record, "label_field", self.label_field, *accepted, place))
        return Document(text, label, prompt)

    def _texts(self, record: dict[str, Any], place: str) -> tuple[str | None, str]:
        """The prompt, if the line is a pair, and the text."""
        if self.template:
            name = "messages_field", self.messages_field
            messages = _field(record, *name, (list,), "a list of messages", place)
            place = f"{place}: messages_field {self.messages_field!r}"
            check_answered(check_messages(messages, place), place)
            for message in messages:
                _check_characters(message["content"], place)
            return self.template.pair(messages, place)
        prompt = self._text(record, "prompt_field", place) if self.prompt_field else None
        return prompt, self._text(record, "text_field", place)

    def _text(self, record: dict[str, Any], key: str, place: str) -> str:
        name = getattr(self, key)
        text = _field(record, key, name, (str,), "a string", place)
        _check_characters(text, f"{place}: {key} {name!r}")
        return text


def _check_characters(text: str, place: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell what is no character.
        half = ascii(text[error.start])
        raise ValueError(f"{place} holds {half}, half of a surrogate pair") from None


def _field(
    record: dict[str, Any], key: str, name: str, types: tuple[type, ...], accepted: str, place: str
) -> Any:
    if name not in record:
        raise ValueError(
            f"{place} has no {key} {name!r}: its fields are {', '.join(record) or 'none'}"
        )
    value = record[name]
    if not isinstance(value, types) or isinstance(value, bool):
        raise ValueError(f"{place}: {key} {name!r} must be {accepted}, got {json.dumps(value)}")
    return value


def _lines(file: _File) -> Iterator[str]:
    """Lines of a file with their '\\n', as Python's text mode reads them; no byte order mark."""
    offset = 0
    for line in _byte_lines(file):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{file.name} is not UTF-8: byte {offset + error.start} (0x{line[error.start]:02x})"
            ) from None
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset += len(line)
        yield text[:-2] + "\n" if text.endswith("\r\n") else text
    if not offset:
        raise ValueError(f"{file.name} is empty")


def _byte_lines(file: _File) -> Iterator[bytes]:
    with file.system.open(file.path, "rb") as raw:
        if not file.path.endswith(".gz"):
            yield from raw
            return
        try:
            with gzip.open(raw) as unpacked:
                yield from unpacked
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{file.name} is broken gzip: {str(error).rstrip('.')}") from None


def _find(field: str, globs: str) -> list[_File]:
    """The files of comma-separated globs, in their order, each glob's sorted, none twice."""
    found: dict[str, _File] = {}
    for pattern in filter(None, (part.strip() for part in globs.split(","))):
        system, root = _system(field, pattern)
        # What exists is taken literally: names may hold brackets.
        try:
            paths = [root] if system.exists(root) else sorted(system.glob(root))
        except OSError as error:  # of a bucket, the network's words only
            raise ValueError(f"{field}: cannot read {pattern!r}: {error}") from None
        if not paths:
            raise ValueError(f"{field}: {pattern!r} matches no file")
        for path in paths:
            file = _stat(field, system, path)
            found.setdefault(file.name, file)
    return list(found.values())


def _system(field: str, pattern: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(pattern)
    except ImportError as error:
        wanted = "pip install 'mdlm_jax[gcs]'" if pattern.startswith("gs://") else str(error)
        raise ModuleNotFoundError(f"{field}: to read {pattern!r}: {wanted}") from None
    except ValueError as error:
        raise ValueError(f"{field}: cannot read {pattern!r}: {error}") from None


def _stat(field: str, system: Any, path: str) -> _File:
    info = system.info(path)
    local = "file" in system.protocol
    name = path if local else system.unstrip_protocol(path)
    if info["type"] == "directory":
        raise ValueError(f"{field}: {name} is a folder: name its files, {name.rstrip('/')}/*.txt")
    if not path.removesuffix(".gz").endswith((".txt", ".jsonl")):
        raise ValueError(f"{field}: {name} must end in .txt, .jsonl, .txt.gz or .jsonl.gz")
    stamp = next((str(info[key]) for key in _STAMPS if key in info), "")
    return _File(system, path, name, json.dumps([name, info["size"], stamp]))


def _refuse_shared(found: Mapping[str, Iterable[_File]]) -> None:
    seen: dict[str, str] = {}
    for split, files in found.items():
        for file in files:
            if seen.setdefault(file.name, split) != split:
                raise ValueError(
                    f"{split}_files: {file.name} is among those of {seen[file.name]} too"
                )
