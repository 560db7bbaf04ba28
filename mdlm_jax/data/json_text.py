"""JSON that people wrote, and checks of its values; errors name the place."""

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

from mdlm_jax.data import reading

# What may be a number, and strings, in which it is none.
_NUMBERS = re.compile(r'"(?:[^"\\]|\\.)*"|-?(?:NaN|Infinity|\d[\d.eE+-]*)')


def parse(text: str, place: str, *, wanted: str = "") -> Any:
    """The value of one line.

    Args:
      text: the line.
      place: its name in messages.
      wanted: what a line must be, for the message about text that is not JSON.

    Raises:
      ValueError: it is not JSON, nested too deeply, or has a number that is too long.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"{place} is not JSON: {error.msg} at column {error.colno}"
        raise ValueError(f"{message}; {wanted}" if wanted else message) from None
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply") from None
    except ValueError:
        digits = sys.get_int_max_str_digits()
        raise ValueError(f"{place} has a number of more than {digits:,} digits") from None


def records(name: reading.Name | reading.File) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one object a line, each with its line's name in messages.

    Raises:
      ValueError: a line is no object, or the file is no text; the file and the line are named.
      OSError: it cannot be read.
    """
    for place, line in reading.numbered(name):
        record = parse(line, place, wanted="each line must be a whole object")
        if not isinstance(record, dict):
            raise ValueError(f"{place} must be an object with fields, got {shown(record)}")
        yield place, record


def load(name: reading.Name, of: type = dict, *, finite: bool = True) -> Any:
    """The object or list of a whole file, such as a config.json.

    Args:
      name: of the file.
      of: `dict` or `list`.
      finite: whether NaN, Infinity and 1e999 are refused, as in a config. A result may hold them.

    Raises:
      ValueError: it is no such thing, or has such a number; the file and the line are named.
      OSError: it cannot be read.
    """
    file = reading.locate(name)
    text = reading.text(file)
    try:
        checks = {"parse_constant": _refused, "parse_float": _finite} if finite else {}
        value = json.loads(text, **checks)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file.name}, line {error.lineno} is not JSON: {error.msg} at column {error.colno}"
        ) from None
    except RecursionError:
        raise ValueError(f"{file.name} is nested too deeply") from None
    except ValueError:
        number, line = next(_absurd_numbers(text))
        raise ValueError(
            f"{file.name}, line {line} has the number {number[:20]}: it must be finite"
        ) from None
    if not isinstance(value, of):
        wanted = "an object with fields" if of is dict else "a list"
        raise ValueError(f"{file.name} must hold {wanted}, got {shown(value)}")
    return value


def label(value: Any, place: str) -> str:
    """The name of a label: a text, or a whole number as text.

    Raises:
      ValueError: it is neither.
    """
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"{place} must be a string or an integer, got {shown(value)}")
    return check_characters(str(value), place)


def check_characters(text: str, place: str) -> str:
    """The text, if it consists of characters.

    Raises:
      ValueError: it holds half of a surrogate pair, which JSON can spell.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ValueError(f"{place} holds {half}, half of a surrogate pair") from None
    return text


def shown(value: Any) -> str:
    """A value in a few words, for a message."""
    try:
        text = json.dumps(value, default=str)  # a table has dates, too
    except RecursionError:
        return "what is nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refused(constant: str) -> None:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _absurd_numbers(text: str) -> Iterator[tuple[str, int]]:
    """The numbers that are not finite as floats, and their lines."""
    for found in _NUMBERS.finditer(text):
        number = found[0]
        with contextlib.suppress(ValueError):  # of a string
            if not math.isfinite(float(number)):
                yield number, text.count("\n", 0, found.start()) + 1
