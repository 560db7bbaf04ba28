"""Files of text as a corpus: .txt and .jsonl, plain or gzipped, wherever fsspec reads."""

import dataclasses
import glob
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mdlm_jax.data import json_text, reading
from mdlm_jax.data.corpora.chat import ChatTemplate, check_answered, check_messages
from mdlm_jax.data.corpora.documents import Corpus, Document

# Of what makes documents of bytes: raise it whenever that makes others of the same files.
_READER = "2"

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
    def is_jsonl(self) -> bool:
        return reading.kind(self.at.path) == "jsonl"


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
      whose response is that. As a shell does, a glob passes over hidden files.

    Raises:
      ModuleNotFoundError: the package that reads this file system is not installed.
      ValueError: a glob matches nothing, or something that cannot be read; it is named. Also while
        the documents are read: a file is empty, broken or no text (see `reading`), or a line
        of a .jsonl is not as it should be.
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
            found = self._of_jsonl(file) if file.is_jsonl else self._of_txt(file)
            yield from (document for document in found if document.text.strip())

    def parts(self) -> list[Iterable[Document]]:
        return [dataclasses.replace(self, files=(file,)) for file in self.files]

    def _of_txt(self, file: _File) -> Iterator[Document]:
        lines = reading.lines(file.at)
        if self.documents == "line":
            texts = (line.removesuffix("\n") for line in lines)
        elif self.documents == "file":
            texts = ("".join(each) for each in (lines,))
        else:
            paragraphs = itertools.groupby(lines, key=lambda line: bool(line.strip()))
            texts = ("".join(each).removesuffix("\n") for is_text, each in paragraphs if is_text)
        return (Document(text, 0, place=file.name) for text in texts)

    def _of_jsonl(self, file: _File) -> Iterator[Document]:
        for place, record in json_text.records(file.at):
            prompt, text = self._texts(record, place)
            label: int | str = 0
            if self.label_field:
                value = _field(record, "label_field", self.label_field, place)
                label = json_text.label(value, f"{place}: label_field {self.label_field!r}")
            yield Document(text, label, prompt, place)

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


def _field(record: dict[str, Any], key: str, name: str, place: str) -> Any:
    if name not in record:
        raise ValueError(
            f"{place} has no {key} {name!r}: its fields are {', '.join(record) or 'none'}"
        )
    return record[name]


def _find(field: str, globs: str) -> list[_File]:
    """The files of comma-separated globs, in their order, each glob's sorted, none twice."""
    found: dict[str, _File] = {}
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
            file = _stat(field, root.system, path)
            found.setdefault(file.name, file)
    return list(found.values())


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


def _stat(field: str, system: Any, path: str) -> _File:
    info = system.info(path)
    at = reading.File(system, path, "")
    name = path if at.is_local else system.unstrip_protocol(path)
    if info["type"] == "directory":
        raise ValueError(f"{field}: {name} is a folder: name its files, {name.rstrip('/')}/*.txt")
    if not reading.kind(path):
        accepted = ", ".join((*reading.TEXT, *reading.JSONL))
        raise ValueError(f"{field}: {name} must end in one of {accepted}, perhaps with .gz")
    stamp = next((str(info[key]) for key in _STAMPS if key in info), "")
    return _File(at._replace(name=name), json.dumps([name, info["size"], stamp]))


def _refuse_shared(found: Mapping[str, Iterable[_File]]) -> None:
    seen: dict[str, str] = {}
    for split, files in found.items():
        for file in files:
            if seen.setdefault(file.name, split) != split:
                raise ValueError(
                    f"{split}_files: {file.name} is among those of {seen[file.name]} too"
                )
