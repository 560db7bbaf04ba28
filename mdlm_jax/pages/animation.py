"""How canvases were filled, as HTML: a small player for each sample, nothing fetched.

The text of a sample stands in the page whole, each generated token in an element of its own. What
is not yet written is covered by a soft block of the token's own size, so that no step moves the
text, and a reader without JavaScript sees the final text, coloured by confidence. Text never
enters the script: that reads numbers alone.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby, pairwise
from typing import Any

from mdlm_jax.pages import template

# A sample: {"prompt": str, "text": str, "strategy": str, "steps": int, "seed": int,
# "tokens": [[piece, step, log_prob], ...]}. The pieces joined are the text; step is -1 where the
# token was given, else the step from 0 that wrote it; log_prob, in nats, is what it had then.
Sample = Mapping[str, Any]

# Probabilities at which the shade changes: closer where they are small, as in nats.
_BOUNDS = (0.01, 0.05, 0.2, 0.5)

_GAPS = re.compile(r"\[MASK\]|<\|?mask\|?>|\{mask:\d+\}")


def animation(samples: Sequence[Sample]) -> str:
    """An HTML fragment that plays the samples; a URL that ends in `#step=3` opens them there.

    Args:
      samples: as `samples.json` holds them. Each kind stands under a heading, infilling first.

    Returns:
      One self-contained element, for a page that is light or dark; it may stand there many times.
    """
    groups = (
        ("Infilling", [each for each in samples if given(each)]),
        ("Answers", [each for each in samples if is_answer(each)]),
        (
            "Text from nothing but masks",
            [each for each in samples if not given(each) and not is_answer(each)],
        ),
    )
    parts = [
        f"<h3>{heading}</h3>\n" + _grid([_player(sample) for sample in group])
        for heading, group in groups
        if group
    ]
    return _fragment(parts, len(samples))


def side_by_side(samples: Mapping[str, Sample]) -> str:
    """The same of one sample a name, such as that of a run, which stands above it."""
    players = [_player(sample, name) for name, sample in samples.items()]
    return _fragment([_grid(players)], len(samples))


def page(samples: Sequence[Sample], title: str) -> str:
    """A whole page with the animation of the samples."""
    return template.page(title, f"<header><h1>{escape(title)}</h1></header>\n{animation(samples)}")


def given(sample: Sample) -> bool:
    """Whether the model was given any of the text."""
    return any(step < 0 for _, step, _ in sample["tokens"])


def is_answer(sample: Sample) -> bool:
    """Whether the text answers the prompt, which is no part of it."""
    return not given(sample) and bool(_GAPS.sub("", sample["prompt"]).strip())


def _fragment(parts: Sequence[str], players: int) -> str:
    together = '<button type="button" class="all" hidden>Play all</button>' if players > 1 else ""
    return (
        f'<div class="filling">\n<style>{_STYLE}</style>\n<div class="bar">{_legend()}{together}'
        f"</div>\n{''.join(parts)}<script>{_SCRIPT}</script>\n</div>\n"
    )


def _grid(players: Sequence[str]) -> str:
    return f'<div class="players">\n{"".join(players)}</div>\n'


def _legend() -> str:
    percent = [f"{bound:.0%}".replace("%", " %") for bound in _BOUNDS]
    names = [f"under {percent[0]}"]
    names += [f"{low[:-2]}–{high}" for low, high in pairwise(percent)]
    names.append(f"over {percent[-1]}")
    shades = "".join(f'<li><b class="c{i}"></b>{name}</li>' for i, name in enumerate(names))
    return (
        '<ul class="legend"><li>Probability of a token when it was written:</li>'
        f'{shades}<li><b class="blank"></b>masked</li></ul>'
    )


def _player(sample: Sample, title: str = "") -> str:
    generated = [(step, log_prob) for _, step, log_prob in sample["tokens"] if step >= 0]
    at = " ".join(str(step) for step, _ in generated)
    percent = " ".join(f"{100 * math.exp(log_prob):.2g}" for _, log_prob in generated)
    heading = f"<h4>{escape(title)}</h4>\n" if title else ""
    return (
        f'<figure class="player" data-steps="{sample["steps"]}" data-at="{at}" '
        f'data-percent="{percent}">\n{heading}'
        '<div class="controls" hidden><button type="button">Play</button>'
        f'<input type="range" min="0" max="{sample["steps"]}" value="{sample["steps"]}" '
        'aria-label="Step"><span class="count"></span></div>\n'
        f'<p class="canvas">{"".join(_text(sample["tokens"]))}</p>\n'
        f"<figcaption>{escape(' · '.join(_notes(sample)))}</figcaption>\n</figure>\n"
    )


def _text(tokens: Sequence[Sequence[Any]]) -> Iterator[str]:
    """Given text as it is, and each run of generated tokens within a `mark`."""
    for generated, run in groupby(tokens, lambda token: token[1] >= 0):
        if generated:
            yield f"<mark>{''.join(_token(piece, log_prob) for piece, _, log_prob in run)}</mark>"
        else:
            yield escape("".join(piece for piece, _, _ in run))


def _token(piece: str, log_prob: float) -> str:
    """The space around a token stays outside of its block."""
    bare = piece.strip()
    before, after = piece[: piece.index(bare)], piece[piece.index(bare) + len(bare) :]
    shade = f"c{bisect_right(_BOUNDS, math.exp(log_prob))}"
    kind = f'"{shade} end"' if not bare and "\n" in piece else shade
    return f"{before}<i class={kind}>{escape(bare)}</i>{after}"


def _notes(sample: Sample) -> Iterator[str]:
    if given(sample) or is_answer(sample):
        yield re.sub(r"\[MASK\](?: ?\[MASK\])+", _counted_masks, sample["prompt"])
    yield "1 step" if sample["steps"] == 1 else f"{sample['steps']:,} steps"
    yield sample["strategy"].replace("_", " ")
    yield f"seed {sample['seed']}"


def _counted_masks(run_of_masks: re.Match[str]) -> str:
    return f"[MASK] × {run_of_masks[0].count('[MASK]')}"


_STYLE = """
.filling { --c0: #fbd3bf; --c1: #fbe7bd; --c2: #e6ecce; --c3: #cbe5e6; --c4: #b3d3f8;
  --blank: #d8dce1; --now: #0b5cad; --card: #f4f6f8; }
@media (prefers-color-scheme: dark) { .filling { --c0: #70371f; --c1: #5d4a17; --c2: #3e4a33;
  --c3: #1f4b58; --c4: #1c4f92; --blank: #3d444b; --now: #6cb1f5; --card: #1e2226; } }
.filling .bar { display: flex; flex-wrap: wrap; gap: .6rem 1.5rem; align-items: center;
  justify-content: space-between; margin: .8rem 0 1rem; }
.filling .legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 0; padding: 0;
  font-size: .875rem; list-style: none; }
.filling .legend b { display: inline-block; width: 1.3em; height: 1em; margin-right: .35em;
  border-radius: .2em; vertical-align: -.12em; }
.filling .legend .blank { background: var(--blank); }
.filling .players { display: grid; gap: .8rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.filling h3 { margin: 1.2rem 0 .5rem; }
.filling h4 { margin: 0 0 .5rem; font-size: 1rem; }
.filling .player { max-width: none; margin: 0; padding: .8rem 1rem; border-radius: .5rem;
  background: var(--card); contain: content; }
.filling .controls { display: flex; gap: .7rem; align-items: center; margin-bottom: .6rem; }
.filling [hidden] { display: none; }
.filling button { min-width: 4.6em; padding: .25rem .7rem; border: 1px solid currentColor;
  border-radius: .35rem; background: none; color: inherit; font: inherit; font-size: .875rem;
  cursor: pointer; }
.filling input { flex: 1; min-width: 3rem; accent-color: var(--now); }
.filling .count { font-size: .875rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.filling .canvas { margin: 0 0 .5rem; line-height: 1.75; white-space: pre-wrap; }
.filling mark { padding: 0; background: none; color: inherit; }
.filling i { padding: .1em 0; border-right: 1px solid transparent; border-radius: .3em;
  background-clip: padding-box; font-style: normal; forced-color-adjust: none;
  box-decoration-break: clone; -webkit-box-decoration-break: clone;
  transition: background-color .35s, color .35s, box-shadow .35s; }
.filling i:empty::before { content: "\\2007"; }
.filling i.end::before { content: "\\b6"; }
.filling .c0 { background-color: var(--c0); } .filling .c1 { background-color: var(--c1); }
.filling .c2 { background-color: var(--c2); } .filling .c3 { background-color: var(--c3); }
.filling .c4 { background-color: var(--c4); }
.filling i.blank { background-color: var(--blank); color: transparent; user-select: none; }
.filling i.now { box-shadow: 0 0 0 1.5px var(--now); }
@media (prefers-reduced-motion: reduce) { .filling i { transition: none; } }
"""

_SCRIPT = """
(() => {
  const root = document.currentScript.closest(".filling");
  const all = root.querySelector(".all");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  function player(element) {
    const numbers = (name) => element.dataset[name].split(" ").map(Number);
    const [steps, at, percent] = [Number(element.dataset.steps), numbers("at"), numbers("percent")];
    const tokens = [...element.querySelectorAll("i")];
    const [button, slider] = element.querySelectorAll("button, input");
    let step = steps, timer = null;

    function show(next) {
      const before = step;
      step = Math.max(0, Math.min(steps, next));
      tokens.forEach((token, i) => {
        if (at[i] < Math.min(before, step) - 1 || at[i] >= Math.max(before, step)) return;
        token.classList.toggle("blank", at[i] >= step);
        token.classList.toggle("now", at[i] === step - 1 && step < steps);
      });
      const text = `step ${step} of ${steps}`;
      slider.value = step;
      slider.setAttribute("aria-valuetext", text);
      element.querySelector(".count").textContent = text;
    }
    function label() {
      button.textContent = timer === null ? "Play" : "Pause";
      if (all) all.textContent = players.some((each) => each.playing()) ? "Pause all" : "Play all";
    }
    function pause() {
      clearTimeout(timer);
      timer = null;
      label();
    }
    function advance() {
      // With reduced motion: few changes, and slow.
      show(step + (calm.matches ? Math.ceil(steps / 12) : 1));
      if (step === steps) return pause();
      timer = setTimeout(advance, calm.matches ? 1000 : Math.max(40, Math.min(600, 8000 / steps)));
    }
    function play() {
      if (step === steps) show(0);
      clearTimeout(timer);
      timer = setTimeout(advance, 500);
      label();
    }
    const playing = () => timer !== null;
    const toggle = () => (playing() ? pause() : play());
    const seek = (next) => { pause(); show(next); };

    button.addEventListener("click", toggle);
    slider.addEventListener("input", () => seek(Number(slider.value)));
    slider.addEventListener("keydown", (event) => {
      if (event.key === " ") { event.preventDefault(); toggle(); }
    });
    element.addEventListener("pointerover", ({ target }) => {
      const i = tokens.indexOf(target);
      if (i >= 0) target.title = at[i] < step ? `step ${at[i] + 1}: ${percent[i]} %` : "masked";
    });
    element.querySelector(".controls").hidden = false;
    return { show, play, pause, playing, seek };
  }

  const players = [...root.querySelectorAll(".player")].map(player);
  function follow() {
    const wanted = /\\bstep=(\\d+)/.exec(location.hash);
    players.forEach((each) => (wanted ? each.seek(Number(wanted[1])) : each.show(Infinity)));
  }
  if (all) {
    all.hidden = false;
    all.addEventListener("click", () => {
      const some = players.some((each) => each.playing());
      players.forEach((each) => (some ? each.pause() : each.play()));
    });
  }
  addEventListener("hashchange", follow);
  follow();
})();
"""
