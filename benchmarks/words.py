"""How many of the words that a model writes are English words, beside real text.

    python -m mdlm_jax.generate --workdir=runs/quickstart --samples=32 --json >written.jsonl
    python -m benchmarks.words --workdir=runs/quickstart written.jsonl

A word is a run of letters, perhaps with apostrophes within; an English word is one that stands in
the run's training split. What is written is compared with the rows of the test split: they too
hold words that the training split lacks, and rows cut words in two.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mdlm_jax import data

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words(text: str) -> Iterator[str]:
    """The words of a text, in lower case."""
    return (word.lower() for word in _WORD.findall(text))


def share(texts: Iterable[str], known: set[str]) -> tuple[float, int]:
    """Which share of the words of some texts is known, and how many words these are.

    Raises:
      ValueError: the texts hold no word.
    """
    found = [word in known for text in texts for word in words(text)]
    if not found:
        raise ValueError("there is no word in what was written")
    return sum(found) / len(found), len(found)


def main(arguments: list[str]) -> None:
    """Prints both shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", required=True, help="the run that wrote")
    parser.add_argument("written", help="what `generate --json` printed")
    asked = parser.parse_args(arguments)
    config = json.loads((Path(asked.workdir) / "config.json").read_text())
    prepared = data.prepare(data.Config(**config["data"]))
    train, test = prepared.splits["train"].tokens, prepared.splits["test"].tokens
    # Packed rows are the text end to end: decoded as one, no word of it is cut.
    known = set(words(data.decode(prepared.tokenizer, np.concatenate(train))))
    lines = Path(asked.written).read_text(encoding="utf-8").splitlines()
    written = [json.loads(line)["text"] for line in lines]
    real = (data.decode(prepared.tokenizer, row) for row in test)
    for name, texts in (("written", written), ("test split", real)):
        part, count = share(texts, known)
        print(f"{name:<12}{part:7.1%} of {count:,} words stand in the training split")


if __name__ == "__main__":
    main(sys.argv[1:])
