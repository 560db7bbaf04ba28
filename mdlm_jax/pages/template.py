"""HTML: the frame of a page, what stands in it, and how quantities are written."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

NOTHING = "–"  # stands where there is no value


def page(title: str, body: str) -> str:
    """A whole page, for screens of any width, light and dark; `body` is HTML."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls sideways where it is too wide; cells are escaped."""

    def line(cells, tag):
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    head = f"<thead>{line(head, 'th')}</thead>"
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def facts(entries: Iterable[tuple[str, Any]]) -> str:
    """Names and values, escaped; addresses in the values become links."""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{_linked(escape(str(value)))}</dd>" for name, value in entries
    )
    return f"<dl>{items}</dl>"


def tile(name: str, value: str, unit: str, notes: Sequence[str], main: bool = False) -> str:
    """A figure of the headline with its unit, and lines that tell more of it."""
    lines = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return (
        f'<div class="tile{" main" if main else ""}"><h2>{escape(name)}</h2>'
        f'<p class="value"><b>{escape(value)}</b> {escape(unit)}</p>{lines}</div>\n'
    )


def figure(title: str, svg: str, caption: str) -> str:
    """An `<svg>` with its title and what it shows."""
    return (
        f"<figure><h2>{escape(title)}</h2>\n{svg}\n<figcaption>{escape(caption)}</figcaption>"
        "</figure>\n"
    )


def cell(layout: str, value: Any) -> str:
    """A value as the format string lays it out."""
    return NOTHING if value is None else layout.format(value)


def count(number: float) -> str:
    """`1234567` as "1.2 M"."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {name}"
    return f"{number:.0f}"


def duration(seconds: float) -> tuple[str, str]:
    """A number and its unit."""
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}", name
    return f"{seconds:.0f}", "seconds"


def memory(size: int) -> tuple[str, str]:
    """A number and its unit, of a size in bytes."""
    return (f"{size / 2**30:.1f}", "GiB") if size >= 2**30 else (f"{size / 2**20:.0f}", "MiB")


def _linked(escaped: str) -> str:
    return re.sub(r"https?://[^\s<>()&]*[\w/]", r'<a href="\g<0>">\g<0></a>', escaped)


_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2024; --soft: #5a636d; --faint: #d8dce1;
  --tint: #f4f6f8; --training: #8fb3d9; --model: #0b5cad; --unigram: #8a6d1a;
  --bigram: #b0452f; --warn: #fdf0d5; --run0: #0072b2; --run1: #d55e00; --run2: #00875f;
  --run3: #c2608f; --run4: #a87a00; --run5: #3a9bd1; --run6: #6a51a3; --run7: #7a7a7a; }
@media (prefers-color-scheme: dark) { :root { --page: #15181b; --ink: #e6e8ea; --soft: #a0a8b0;
  --faint: #363c42; --tint: #1e2226; --training: #47698c; --model: #6cb1f5;
  --unigram: #d3b65a; --bigram: #ee8a72; --warn: #453716; --run0: #4da9e0; --run1: #f08a4b;
  --run2: #3cc79b; --run3: #e39ac0; --run4: #dfb23c; --run5: #9ad4f5; --run6: #ab98dc;
  --run7: #a5a5a5; } }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: anywhere; }
header p, section > p { max-width: 46rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 0 0 .6rem; font-size: 1.2rem; }
h3 { margin: 0 0 .2rem; font-size: 1rem; }
section { margin-top: 2.2rem; }
section > h2:not(:first-child) { margin-top: 1.6rem; }
.tiles { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); }
.tile { padding: .8rem 1rem; border-radius: .5rem; background: var(--tint); }
.tile.main { border-left: 4px solid var(--model); }
.tile h2 { margin: 0; font-size: .95rem; font-weight: 600; color: var(--soft); }
.tile p { margin: 0; font-size: .875rem; line-height: 1.4; color: var(--soft); }
.tile .value { margin: .1rem 0 .3rem; font-size: 1rem; color: var(--ink); }
.value b { font-size: 1.8rem; font-variant-numeric: tabular-nums; }
.figures { display: grid; gap: 2rem; grid-template-columns:
  repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0; max-width: 40rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption, section > p, footer { font-size: .9rem; color: var(--soft); }
.wide { overflow-x: auto; margin: .8rem 0; overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: right; border-bottom: 1px solid var(--faint);
  vertical-align: bottom; line-height: 1.3; }
th:first-child, td:first-child { text-align: left; }
th { font-weight: 600; color: var(--soft); }
.warning { padding: .7rem 1rem; border-left: 4px solid var(--bigram); border-radius: .5rem;
  background: var(--warn); color: var(--ink); }
.swatch { display: inline-block; width: 1.6em; margin-right: .45em; vertical-align: .2em; }
.runs { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 0 0 1rem; padding: 0;
  list-style: none; }
summary { font-size: 1.2rem; font-weight: bold; cursor: pointer; }
summary + * { margin-top: .8rem; }
dl { display: grid; gap: .1rem 1rem; grid-template-columns: minmax(7rem, max-content) 1fr;
  margin: 0; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; }
.columns { columns: 19rem; column-gap: 2.5rem; }
.columns > div { break-inside: avoid; margin-bottom: 1.2rem; }
a { color: var(--model); }
@media (max-width: 32rem) {
  .tile.main { grid-column: 1 / -1; }
  .tiles { grid-template-columns: 1fr 1fr; }
  section > dl { grid-template-columns: 1fr; }
  section > dl dd { margin-bottom: .4rem; }
}
"""
