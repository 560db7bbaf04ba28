"""The jinja2 templates of the pages, which always escape, and how pages write quantities."""

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

NOTHING = "–"  # in place of a missing value


def render(name: str, **values: Any) -> Markup:
    """Renders `templates/NAME` with the values.

    Args:
      name: of a file in `templates`.
      **values: text is escaped unless it is `Markup`.

    Raises:
      jinja2.UndefinedError: a value that the template uses is missing.
    """
    return Markup(_environment().get_template(name).render(values))


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mdlm_jax.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["source"] = _source
    environment.filters |= {
        "count": count,
        "duration": duration,
        "memory": memory,
        "number": number,
        "percent": percent,
        "split_links": split_links,
    }
    return environment


def _source(name: str) -> Markup:
    """The unescaped text of a file in `templates`: CSS or JavaScript."""
    environment = _environment()
    return Markup(environment.loader.get_source(environment, name)[0])


def number(value: Any, layout: str = "") -> str:
    """A value formatted by a specification such as ",.3f"."""
    return NOTHING if value is None else format(value, layout)


def percent(share: float) -> str:
    """`0.15` as "15 %"."""
    return f"{100 * share:g}\N{NO-BREAK SPACE}%"


def count(value: float) -> str:
    """`1234567` as "1.2 M"."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {name}"
    return f"{value:.0f}"


def duration(seconds: float) -> tuple[str, str]:
    """A number and its unit."""
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}", name
    return f"{seconds:.0f}", "seconds"


def memory(size: int) -> tuple[str, str]:
    """A number and its unit, of a size in bytes."""
    return (f"{size / 2**30:.1f}", "GiB") if size >= 2**30 else (f"{size / 2**20:.0f}", "MiB")


def split_links(value: Any) -> Iterator[tuple[str, str]]:
    """Pieces of text, each with the web address after it, "" for none."""
    pieces = re.split(r"(https?://[^\s<>()\"']*[\w/])", str(value))
    return zip(pieces[::2], [*pieces[1::2], ""], strict=True)


def rows(
    quantities: Iterable[tuple[str, str, str]], columns: Iterable[dict[str, Any]]
) -> list[list[str]]:
    """The rows of a table of quantities, without those that no column has.

    Args:
      quantities: the head of the row, the key of the value, its format specification.
      columns: values by key.
    """
    columns = list(columns)
    return [
        [head, *(number(column.get(key), layout) for column in columns)]
        for head, key, layout in quantities
        if any(column.get(key) is not None for column in columns)
    ]
