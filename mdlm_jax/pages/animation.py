"""How canvases were filled, as HTML: a small player for each sample, which loads nothing.

The page holds the whole text of a sample, with an element for each generated token. A token that is
not yet written is covered by a block of its own size, so that the text never moves. A reader
without JavaScript sees the final text, coloured by confidence. The script reads numbers only, never
text.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, NamedTuple

from markupsafe import Markup

from mdlm_jax.pages import template

# A sample: {"prompt": str, "text": str, "strategy": str, "steps": int, "seed": int,
# "tokens": [[piece, step, log_prob], ...]}. The joined pieces are the text. `step` is the one, from
# 0 on, that wrote the token, or -1 if it was given. `log_prob`, in nats, is its own at that step.
Sample = Mapping[str, Any]

# Probabilities at which the shade changes, denser near 0, as nats are.
_BOUNDS = (0.01, 0.05, 0.2, 0.5)

_GAPS = re.compile(r"\[MASK\]|<\|?mask\|?>|\{mask:\d+\}")


def animation(samples: Sequence[Sample]) -> Markup:
    """An HTML fragment that plays the samples; a URL that ends in `#step=3` opens them at step 3.

    Args:
      samples: as in `samples.json`. Each kind gets a heading, infilling first.

    Returns:
      One self-contained element, for light and dark pages. A page may hold several.
    """
    kinds: dict[str, list[_Player]] = {
        "Infilling": [],
        "Answers": [],
        "Text from nothing but masks": [],
    }
    for sample in samples:
        kinds[_kind(sample)].append(_player(sample))
    return _fragment(_Group(kind, players) for kind, players in kinds.items() if players)


def side_by_side(samples: Mapping[str, Sample]) -> Markup:
    """A fragment like `animation` of one sample for each name, such as a run's, with the names."""
    return _fragment([_Group("", [_player(sample, name) for name, sample in samples.items()])])


def page(samples: Sequence[Sample], title: str) -> str:
    """A whole page with the animation of the samples."""
    return template.render("samples.html.j2", title=title, filling=animation(samples))


def given(sample: Sample) -> bool:
    """Whether the model was given any of the text."""
    return any(step < 0 for _, step, _ in sample["tokens"])


def is_answer(sample: Sample) -> bool:
    """Whether the text answers the prompt, and does not contain it."""
    return not given(sample) and bool(_GAPS.sub("", sample["prompt"]).strip())


class _Token(NamedTuple):
    """A generated token; white space around it is outside of its block."""

    before: str
    text: str
    after: str
    shade: int  # how probable it was, an index of `_shades`
    ends_line: bool


class _Piece(NamedTuple):
    """Given text, or else a run of generated tokens."""

    given: str
    tokens: Sequence[_Token]


class _Player(NamedTuple):
    title: str  # "" for none
    steps: int
    at: Sequence[int]  # of each generated token the step that wrote it
    percent: Sequence[str]  # its probability
    pieces: Sequence[_Piece]
    notes: Sequence[str]


class _Group(NamedTuple):
    heading: str  # "" for none
    players: Sequence[_Player]


def _fragment(groups: Iterable[_Group]) -> Markup:
    return template.render("filling.html.j2", groups=list(groups), shades=list(_shades()))


def _kind(sample: Sample) -> str:
    if given(sample):
        return "Infilling"
    return "Answers" if is_answer(sample) else "Text from nothing but masks"


def _shades() -> Iterator[str]:
    percent = [f"{100 * bound:.0f}" for bound in _BOUNDS]
    yield f"under {percent[0]} %"
    yield from (f"{low}–{high} %" for low, high in pairwise(percent))
    yield f"over {percent[-1]} %"


def _player(sample: Sample, title: str = "") -> _Player:
    generated = [(step, log_prob) for _, step, log_prob in sample["tokens"] if step >= 0]
    return _Player(
        title=title,
        steps=sample["steps"],
        at=[step for step, _ in generated],
        percent=[f"{100 * math.exp(log_prob):.2g}" for _, log_prob in generated],
        pieces=list(_pieces(sample["tokens"])),
        notes=list(_notes(sample)),
    )


def _pieces(tokens: Sequence[Sequence[Any]]) -> Iterator[_Piece]:
    for generated, run in groupby(tokens, lambda token: token[1] >= 0):
        if generated:
            yield _Piece("", [_token(piece, log_prob) for piece, _, log_prob in run])
        else:
            yield _Piece("".join(piece for piece, _, _ in run), ())


def _token(piece: str, log_prob: float) -> _Token:
    bare = piece.strip()
    start = piece.index(bare)
    return _Token(
        before=piece[:start],
        text=bare,
        after=piece[start + len(bare) :],
        shade=bisect_right(_BOUNDS, math.exp(log_prob)),
        ends_line=not bare and "\n" in piece,
    )


def _notes(sample: Sample) -> Iterator[str]:
    if given(sample) or is_answer(sample):
        yield re.sub(r"\[MASK\](?: ?\[MASK\])+", _counted_masks, sample["prompt"])
    yield "1 step" if sample["steps"] == 1 else f"{sample['steps']:,} steps"
    yield sample["strategy"].replace("_", " ")
    yield f"seed {sample['seed']}"


def _counted_masks(run_of_masks: re.Match[str]) -> str:
    return f"[MASK] × {run_of_masks[0].count('[MASK]')}"
