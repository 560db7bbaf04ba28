"""Prompts with gaps from the text of a run, each with the text that is wanted.

    python -m benchmarks.gaps --workdir=runs/quickstart --output=gaps.jsonl
    python -m mdlm_jax.ab --a=models:/quickstart/1 --b=models:/quickstart/2 --prompts=gaps.jsonl

Each prompt is the start of another text of the split, cut at a word. Whole words are left out, so
many as hold a share of the tokens, and a gap has as many masks as its words have tokens.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax import data


def prompt(
    text: str, tokenizer: Tokenizer, draw: np.random.Generator, share: float
) -> dict[str, str]:
    """A text with gaps, and the text.

    Args:
      text: without special tokens.
      tokenizer: of the run.
      draw: the words.
      share: of the tokens that is left out, at least; one word in any case.
    """
    encoding = tokenizer.encode(text, add_special_tokens=False)
    words: dict[int, list[int]] = {}  # the tokens of each word
    for place, word in enumerate(encoding.word_ids):
        words.setdefault(word, []).append(place)
    left_out, order = set(), draw.permutation(list(words))
    for word in order:
        if left_out and len(left_out) >= share * len(encoding.ids):
            break
        left_out |= {*words[word]}
    parts, end = [], 0
    for places in words.values():
        if places[0] not in left_out:
            continue
        first, last = encoding.offsets[places[0]][0], encoding.offsets[places[-1]][1]
        parts += [text[end:first], f"{{mask:{len(places)}}}"]
        end = last
    return {"prompt": "".join([*parts, text[end:]]), "reference": text}


def texts(rows: data.Rows, tokenizer: Tokenizer, tokens: int) -> Iterator[str]:
    """The starts of the texts of rows that are read as they are written.

    Args:
      rows: of a split.
      tokenizer: of the run.
      tokens: of a start, at the most; texts of fewer are left out, and those with a special token,
        such as [UNK]: nobody can ask for its text.
    """
    ids_of = data.special_ids(tokenizer)
    separator, special = ids_of.sep, [each for each in ids_of if each is not None]
    stream = np.concatenate([*rows.texts()])
    for document in np.split(stream, np.flatnonzero(stream == separator)):
        ids = document[document != separator][: tokens + 1]
        text = data.decode(tokenizer, ids)
        encoding = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) <= tokens or encoding.ids != ids.tolist() or np.isin(ids, special).any():
            continue
        last = encoding.word_ids[-1]  # perhaps half a word, and the one token too many
        read = zip(encoding.offsets, encoding.word_ids, strict=True)
        whole = [end for (_, end), word in read if word != last]
        if whole:
            yield text[: whole[-1]]


def main(arguments: list[str]) -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument("--output", required=True, help="file .jsonl to write")
    parser.add_argument("--split", default="test", help="of the text")
    parser.add_argument("--prompts", type=int, default=500, help="how many, at the most")
    parser.add_argument("--tokens", type=int, default=40, help="of a text, at the most")
    parser.add_argument("--share", type=float, default=0.4, help="of the tokens that is left out")
    parser.add_argument("--seed", type=int, default=0)
    asked: Any = parser.parse_args(arguments)
    config = json.loads((Path(asked.workdir) / "config.json").read_text())
    prepared = data.prepare(data.Config(**config["data"]))
    draw = np.random.default_rng(asked.seed)
    found = texts(prepared.splits[asked.split], prepared.tokenizer, asked.tokens)
    lines = [
        json.dumps(prompt(text, prepared.tokenizer, draw, asked.share), ensure_ascii=False)
        for text, _ in zip(found, range(asked.prompts), strict=False)
    ]
    Path(asked.output).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    print(f"written: {asked.output}, {len(lines):,} prompts")


if __name__ == "__main__":
    main(sys.argv[1:])
