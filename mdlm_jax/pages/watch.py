"""Samples replayed on a terminal, as they were written."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

_FRAMES_PER_SECOND = 20


def watch(samples: Sequence[Mapping[str, Any]], console: Console, seconds: float = 6.0) -> None:
    """Replays the samples one after the other, and leaves their final texts on the screen.

    A mask is a block as wide as the token that it becomes, so that the text does not move. Tokens
    that were just written are bright, given ones dim. On a console that is not a terminal only the
    final texts are printed, separated by an empty line.

    Args:
      samples: as `samples.json` holds them (`mdlm_jax.pages.animation`).
      console: of rich.
      seconds: how long the replay of one sample takes.
    """
    for index, sample in enumerate(samples):
        if index:
            console.print()
        if console.is_terminal:
            _replay(sample, console, seconds)
            console.print(frame(sample, sample["steps"]))
        else:
            console.print(
                sample["text"], markup=False, highlight=False, emoji=False, soft_wrap=True
            )


def frame(sample: Mapping[str, Any], step: int, *, unicode: bool = True) -> Text:
    """The canvas after `step` steps; after the last step nothing is bright."""
    text, mask = Text(), "░" if unicode else "#"
    for piece, at, _ in sample["tokens"]:
        if at >= step:
            space = piece[: len(piece) - len(piece.lstrip())]
            text.append(space).append(mask * cell_len(piece[len(space) :]), "bright_black")
        elif at < 0:
            text.append(piece, "dim")
        else:
            text.append(piece, "bold bright_cyan" if at == step - 1 < sample["steps"] - 1 else "")
    return text


def _replay(sample: Mapping[str, Any], console: Console, seconds: float) -> None:
    steps = sample["steps"]
    frames = max(1, round(seconds * _FRAMES_PER_SECOND))
    shown = range(0, steps, -(-steps // frames))
    unicode = console.encoding.startswith("utf")
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for step in shown:
            counter = Text(f"step {step} of {steps}", "bright_black")
            live.update(Group(frame(sample, step, unicode=unicode), counter), refresh=True)
            time.sleep(seconds / len(shown))
