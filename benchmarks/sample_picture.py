"""A picture of samples, each token coloured by when it was written.

    python -m mdlm_jax.generate --workdir=runs/english --steps=256 --temperature=0.8 --save \\
        --prompt="Chocolate {mask:3} Cake {mask:120}" --prompt=""
    python -m benchmarks.sample_picture runs/english/samples.json 0 1 --output=docs/english.svg

Takes the samples.json of a run and the places of samples in it, and writes an SVG file.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

Token = tuple[
    str, int, float
]  # the text, the step that wrote it (-1: it was given), its probability

COLUMNS, LINE, SIZE, LETTER, MARGIN = 98, 18, 13, 7.85, 16
FIRST, LAST = (0x9E, 0xC5, 0xE8), (0x0B, 0x3C, 0x6F)  # colours of the first and the last step
GIVEN = "#b3541e"


def colour(step: int, steps: int) -> str:
    """The colour of a token that step `step` of `steps` wrote; of one that was given, -1."""
    if step < 0:
        return GIVEN
    share = step / max(1, steps - 1)
    parts = (round(a + share * (b - a)) for a, b in zip(FIRST, LAST, strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)


def lines(tokens: Sequence[Token], columns: int = COLUMNS) -> Iterator[list[tuple[str, int]]]:
    """The text in lines of pieces `(text, step)`, broken at its newlines and between words."""
    line: list[tuple[str, int]] = []
    for text, step, _ in tokens:
        for number, part in enumerate(text.split("\n")):
            if number:
                yield line
                line = []
            width = sum(len(piece) for piece, _ in line)
            if part.startswith(" ") and width + len(part) > columns:
                yield line
                line, part = [], part.lstrip(" ")
            if part:
                line.append((part, step))
    yield line


def svg(samples: Sequence[dict[str, Any]]) -> str:
    """The picture of some entries of a samples.json, one below the other."""
    rows: list[str] = []
    y = MARGIN + SIZE
    for number, sample in enumerate(samples):
        y += LINE if number else 0
        blank = True
        for line in lines(sample["tokens"]):
            if not line and blank:  # no two empty lines, and none at the top
                continue
            blank = not line
            pieces = "".join(
                f'<tspan fill="{colour(step, sample["steps"])}">{escape(text)}</tspan>'
                for text, step in line
            )
            rows.append(f'<text x="{MARGIN}" y="{y}" xml:space="preserve">{pieces}</text>')
            y += LINE
    width = round(COLUMNS * LETTER + 2 * MARGIN)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" '
            f'viewBox="0 0 {width} {y}" font-family="ui-monospace, Menlo, Consolas, monospace" '
            f'font-size="{SIZE}">',
            '<rect width="100%" height="100%" fill="#fbfaf7"/>',
            *rows,
            "</svg>",
            "",
        ]
    )


def main(arguments: list[str]) -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", help="samples.json of a run")
    parser.add_argument("places", nargs="+", type=int, help="which of its samples, from 0")
    parser.add_argument("--output", required=True, help="an SVG file")
    asked = parser.parse_args(arguments)
    every = json.loads(Path(asked.samples).read_text(encoding="utf-8"))
    if not all(0 <= place < len(every) for place in asked.places):
        parser.error(f"places must be from 0 to {len(every) - 1}: {asked.samples} has no others")
    Path(asked.output).write_text(svg([every[place] for place in asked.places]), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
