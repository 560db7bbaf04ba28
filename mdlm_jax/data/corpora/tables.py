"""Tables as documents: Parquet, and the Arrow files of Hugging Face `datasets`, by pyarrow.

A row is read as a line of JSON is: its columns are the fields. Rows come in batches of some
hundreds, so memory does not grow with the file.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mdlm_jax.data import reading

_ROWS = 512  # of a Parquet file, decoded at a time
_BUFFER = 2**20  # bytes of each of its columns that are read at a time


def require_pyarrow(name: str) -> None:
    """Checks that the tables can be read.

    Args:
      name: of a table, for the message.

    Raises:
      ModuleNotFoundError: pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: F401
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{name} is read by pyarrow: pip install 'mdlm_jax[arrow]'"
        ) from None


def records(file: reading.File, fields: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a .parquet or .arrow file, each with what messages call it.

    Args:
      file: of either kind; an .arrow file is a stream, as `datasets` writes it, or a file of
        Arrow's own format.
      fields: names of the columns that are wanted, by the name of the config's key.

    Yields:
      The place, and `{column: value}`. Text and bytes are strings; of a column of class labels, as
      `datasets` writes them, the value is the label's name.

    Raises:
      ValueError: the file is empty or damaged, lacks a column, or holds bytes that are not UTF-8;
        the file, the row and the column are named.
      OSError: it cannot be read.
    """
    with contextlib.closing(_batches(file, fields)) as batches:
        first = 1
        for batch in batches:
            columns = {
                name: _values(batch, key, name, file.name, first) for key, name in fields.items()
            }
            for number in range(batch.num_rows):
                values = {name: column[number] for name, column in columns.items()}
                yield f"{file.name}, row {first + number}", values
            first += batch.num_rows


def _batches(file: reading.File, fields: Mapping[str, str]) -> Iterator[Any]:
    import pyarrow as pa

    with reading.opened(file) as raw:
        begin = raw.read(6)
        if not begin:
            raise ValueError(f"{file.name} is empty")
        raw.seek(0)
        try:
            if reading.kind(file.path) == "parquet":
                from pyarrow import parquet

                table = parquet.ParquetFile(raw, buffer_size=_BUFFER, pre_buffer=False)
                _check_columns(table.schema_arrow, fields, file.name)
                yield from table.iter_batches(_ROWS, columns=list(fields.values()))
            elif begin == b"ARROW1":
                table = pa.ipc.open_file(raw)
                _check_columns(table.schema, fields, file.name)
                for number in range(table.num_record_batches):
                    yield table.get_batch(number)
            else:
                table = pa.ipc.open_stream(raw)
                _check_columns(table.schema, fields, file.name)
                yield from table
        except pa.ArrowMemoryError:
            raise
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None):  # of the system; of what it read, pyarrow gives none
                raise
            message = " ".join(str(error).split())[:200].rstrip(".")
            raise ValueError(f"{file.name} is damaged: {message}") from None


def _check_columns(schema: Any, fields: Mapping[str, str], place: str) -> None:
    """Refuses a column that is not there, and one of a kind that holds no such values."""
    for key, name in fields.items():
        if schema.names.count(name) > 1:
            raise ValueError(f"{place} has {schema.names.count(name)} columns {name!r}")
        if name not in schema.names:
            columns = ", ".join(schema.names) or "none"
            raise ValueError(f"{place} has no {key} {name!r}: its columns are {columns}")
        kind = schema.field(name).type
        if key == "messages_field":
            continue  # their fields are looked at one by one
        accepted = "strings or integers" if key == "label_field" else "strings"
        if not (
            _is_text(kind) or (key == "label_field" and _is_whole(kind)) or str(kind) == "null"
        ):
            raise ValueError(f"{place}: {key} {name!r} must hold {accepted}, it holds {kind}")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (
        *(types.is_string, types.is_large_string, types.is_string_view),
        *(types.is_binary, types.is_large_binary, types.is_binary_view),
    )
    return any(test(kind) for test in tests)


def _is_whole(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind.value_type if types.is_dictionary(kind) else kind)


def _values(batch: Any, key: str, name: str, file: str, first: int) -> list[Any]:
    """The values of a column; `first` is the number of the batch's first row."""
    column = batch.column(batch.schema.names.index(name))
    if hasattr(column, "dictionary_decode"):
        column = column.dictionary_decode()

    def place(number: int) -> str:
        return f"{file}, row {first + number}: {key} {name!r}"

    if _is_text(column.type):
        # As bytes, for pyarrow does not say which row's are no text.
        raw = enumerate(_as_bytes(column))
        return [None if each is None else reading.decoded(each, place(n)) for n, each in raw]
    names = _class_names(batch.schema, name) if key == "label_field" else None
    values = []
    for number in range(len(column)):
        try:
            value = column[number].as_py()
        except UnicodeDecodeError as error:  # within a list of messages
            message = f"byte {error.start} (0x{error.object[error.start]:02x})"
            raise ValueError(f"{place(number)} is not UTF-8: {message}") from None
        if names is not None and value is not None:
            if not 0 <= value < len(names):
                raise ValueError(
                    f"{place(number)} is {value}, and its classes are 0 to {len(names) - 1}"
                )
            value = names[value]
        values.append(value)
    return values


def _as_bytes(column: Any) -> Iterator[bytes | None]:
    import pyarrow as pa

    return (each.as_py() for each in column.cast(pa.large_binary()))


def _class_names(schema: Any, name: str) -> list[str] | None:
    """The names of class labels, which `datasets` keeps beside the schema; None of others."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    feature = json.loads(metadata).get("info", {}).get("features", {}).get(name, {})
    return feature.get("names") if isinstance(feature, dict) else None
