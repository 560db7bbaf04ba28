"""Progress of long passes over text, on stderr where that is a terminal."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextlib.contextmanager
def bar(
    description: str, total: int | None, unit: str, *, first: str = "", stays: bool = True
) -> Iterator[Callable[..., None]]:
    """A bar while the block runs. Other output goes where it always goes.

    Args:
      description: what is done.
      total: number of steps, None if unknown.
      unit: what the steps are ('documents').
      first: what is done before the first step.
      stays: whether the bar stays after the block.

    Yields:
      `advance(steps, **amounts)`: adds to the steps done, and to the amounts whose rates are shown,
      a second each: `advance(1, MB=0.2)`.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rates]}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    begun = shown = time.monotonic()
    steps_done, done = 0, {}
    with Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,  # rich would send it to stderr
        transient=not stays,
    ) as progress:
        task = progress.add_task(first or description, total=total, rates=unit)

        def show(now: float) -> None:
            rates = (f"{amount / (now - begun):,.1f} {name}/s" for name, amount in done.items())
            progress.update(
                task,
                description=description if steps_done else first or description,
                completed=steps_done,
                rates=", ".join([unit, *rates]),
            )

        def advance(steps: int, **amounts: float) -> None:
            nonlocal shown, steps_done
            steps_done += steps
            for name, amount in amounts.items():
                done[name] = done.get(name, 0) + amount
            now = time.monotonic()
            if now - shown > 0.1 or steps_done == steps:  # Drawing takes longer than a document.
                shown = now
                show(now)

        yield advance
        show(time.monotonic())
