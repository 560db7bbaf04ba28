"""HTML: the frame of a page, and what stands in it: tables, and facts with their names."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


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


def _linked(escaped: str) -> str:
    return re.sub(r"https?://[^\s<>()&]*[\w/]", r'<a href="\g<0>">\g<0></a>', escaped)


_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2024; --soft: #5a636d; --faint: #d8dce1;
  --tint: #f4f6f8; --mark: #dcebfb; --training: #8fb3d9; --model: #0b5cad; --unigram: #8a6d1a;
  --bigram: #b0452f; }
@media (prefers-color-scheme: dark) { :root { --page: #15181b; --ink: #e6e8ea; --soft: #a0a8b0;
  --faint: #363c42; --tint: #1e2226; --mark: #1d3f63; --training: #47698c; --model: #6cb1f5;
  --unigram: #d3b65a; --bigram: #ee8a72; } }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 3rem; background: var(--page);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  overflow-wrap: anywhere; }
header p, section > p { max-width: 46rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 0 0 .6rem; font-size: 1.2rem; }
h3 { margin: 0 0 .2rem; font-size: 1rem; }
section { margin-top: 2.2rem; }
section > h2:not(:first-child) { margin-top: 1.6rem; }
.tiles { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); }
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
blockquote { margin: 0 0 .8rem; padding: .7rem 1rem; border-radius: .5rem;
  background: var(--tint); }
blockquote p { margin: 0 0 .3rem; }
mark { padding: .05em .15em; border-radius: .2em; background: var(--mark); color: inherit;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
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
