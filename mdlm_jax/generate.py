"""Writes text, or fills the gaps of prompts, with a trained model.

    python -m mdlm_jax.generate --workdir=runs/quickstart --prompt "The city of [MASK] [MASK]"

Every [MASK] of a prompt is one token to be filled, {mask:12} is twelve of them; what would follow
the prompt is unknown, and stays masked for the model. Without a prompt a whole row is written from
nothing but masks. More --steps are better text, one step is BERT filling all masks at once.

--watch replays how the text came to be, --html=FILE writes that as a page. --prompts=FILE takes
many prompts (a line each, or JSONL with a field "prompt"), --output=FILE writes one JSON object a
sample; started again it goes on behind the last line that is there.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags
from etils import epath

from mdlm_jax import command_line, data, prompts, workdir
from mdlm_jax.diffusion import sample
from mdlm_jax.experiment import STRATEGIES
from mdlm_jax.networks import bert

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_PROMPTS = flags.DEFINE_multi_string("prompt", [], "Text with gaps; may be given several times.")
_FILE = flags.DEFINE_string("prompts", None, "File of prompts, .jsonl or a line each.")
_SAMPLES = flags.DEFINE_integer("samples", 1, "Samples of each prompt.", 1)
_STEPS = flags.DEFINE_integer("steps", 64, "Network evaluations.", 1)
_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "exact_count",
    sorted(STRATEGIES),
    "exact_count: blanks in a random order, evenly; ancestral: the reverse process, each blank "
    "alone; confidence: the surest first (MaskGIT), plainer text.",
)
_LENGTH = flags.DEFINE_integer("length", None, "Tokens of a row; the model's longest by default.")
_LABEL = flags.DEFINE_string("label", None, "Of a model with classes: what the text is about.")
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params"], "Averaged or raw weights.")
_SEED = flags.DEFINE_integer("seed", 0, "Another seed is another text.", 0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows at a time; changes no sample.", 1)
_WATCH = flags.DEFINE_bool("watch", False, "Replay on the terminal how the text came to be.")
_HTML = flags.DEFINE_string("html", None, "Write that as a page into this file.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a sample.")
_OUTPUT = flags.DEFINE_string("output", None, "Write one JSON object a sample into this file.")
_SAVE = flags.DEFINE_bool(
    "save", False, "Also write samples.txt, samples.json and report.html into the workdir."
)
command_line.require("workdir")


def main() -> int:
    """Fills the prompts of the flags and shows them; returns the exit code."""
    with command_line.bad_input():
        folder = epath.Path(_WORKDIR.value)
        _check_flags()
        trained = workdir.load(folder, weights=_WEIGHTS.value)
        label = _label_of(trained, folder)
        asked = [p for p in _prompts() for _ in range(_SAMPLES.value)]
        canvas = prompts.canvas(asked, trained.tokenizer, _length_of(trained))
        done = _lines_done(asked) if _OUTPUT.value else 0
        console = rich.console.Console(highlight=False, markup=False)

    samples = []
    for made in _fill(trained, asked, canvas, label, first=done):
        if _OUTPUT.value:
            _append(made)
            continue
        samples.append(made)
        if _JSON.value:
            print(json.dumps(_line(made), ensure_ascii=False), flush=True)
        elif not _WATCH.value:
            print(("\n" if len(samples) > 1 else "") + made["text"], flush=True)
    if _OUTPUT.value:
        print(f"{_OUTPUT.value}: {len(asked):,} samples, {len(asked) - done:,} of them new")
    if _WATCH.value:
        from mdlm_jax.evaluation.watch import watch

        watch(samples, console)
    for path in _write_pages(folder, samples):
        console.print(f"written: {path}", soft_wrap=True)
    return 0


def _check_flags() -> None:
    if _PROMPTS.value and _FILE.value:
        raise ValueError("--prompt and --prompts exclude each other")
    shown = [name for name in ("watch", "json", "output") if flags.FLAGS[name].value]
    if len(shown) > 1:
        raise ValueError(f"--{shown[0]} and --{shown[1]} exclude each other")
    if _OUTPUT.value and (_HTML.value or _SAVE.value):
        raise ValueError("--output excludes --html and --save, which are for few samples")
    for path in (_HTML.value, _OUTPUT.value):
        if path and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: there is no folder {Path(path).absolute().parent}")


def _prompts() -> list[str]:
    return prompts.read(_FILE.value) if _FILE.value else _PROMPTS.value or [""]


def _length_of(trained: workdir.Trained) -> int:
    longest = trained.encoder.max_length
    length = longest if _LENGTH.value is None else _LENGTH.value
    if not 1 <= length <= longest:
        raise ValueError(f"--length must be from 1 to {longest}, the model's rows, not {length}")
    return length


def _label_of(trained: workdir.Trained, folder: epath.Path) -> int:
    """Index of --label, -1 for none."""
    if _LABEL.value is None:
        return -1
    if not trained.encoder.classes:
        raise ValueError("--label is for models with classes: this one was trained without")
    names = json.loads((folder / "data.json").read_text(encoding="utf-8"))["label_names"]
    if _LABEL.value not in names:
        raise ValueError(f"--label must be one of {', '.join(names)}, not {_LABEL.value!r}")
    return names.index(_LABEL.value)


def _fill(
    trained: workdir.Trained, asked: list[str], canvas: prompts.Canvas, label: int, first: int
) -> Iterator[dict[str, Any]]:
    """Samples of the prompts from number `first` on, in order, as records for JSON.

    The noise of a sample is a function of the seed and its number, not of the batch it came in.
    """
    encoder = trained.encoder

    @jax.jit
    def write(params, key, tokens, fill, rows, steps):
        labels = jnp.full(tokens.shape[0], label) if encoder.classes else None
        return sample(
            bert.denoiser(params, encoder, label=labels),
            key,
            tokens,
            mask_id=encoder.mask_id,
            steps=steps,
            strategy=STRATEGIES[_STRATEGY.value](),
            fill=fill,
            rows=rows,
            trace=True,
        )

    if first == len(asked):
        return
    size = min(_BATCH_SIZE.value, len(asked) - first)
    for start in range(first, len(asked), size):
        # The last batch is filled up with its last row: one shape, one program.
        rows = np.minimum(np.arange(start, start + size), len(asked) - 1)
        tokens, trace = jax.device_get(
            write(
                trained.params,
                jax.random.key(_SEED.value),
                canvas.tokens[rows],
                canvas.fill[rows],
                rows,
                _STEPS.value,
            )
        )
        for i in range(min(size, len(asked) - start)):
            shown = canvas.shown[rows[i]]
            pieces = data.token_pieces(trained.tokenizer, tokens[i][shown])
            yield {
                "prompt": asked[rows[i]],
                "text": "".join(pieces),
                "strategy": _STRATEGY.value,
                "steps": _STEPS.value,
                "seed": _SEED.value,
                "sample": int(rows[i]) % _SAMPLES.value,
                "tokens": [
                    [piece, int(step), round(float(log_prob), 4)]
                    for piece, step, log_prob in zip(
                        pieces, trace.step[i][shown], trace.log_prob[i][shown], strict=True
                    )
                ],
            }


def _line(made: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in made.items() if name != "tokens"}


def _lines_done(asked: list[str]) -> int:
    """How many samples the output holds already; a half-written last line is dropped.

    Raises:
      ValueError: it holds samples of other prompts or flags.
    """
    path = Path(_OUTPUT.value)
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    wanted = {"strategy": _STRATEGY.value, "steps": _STEPS.value, "seed": _SEED.value}
    for number, line in enumerate(whole):
        try:
            made = json.loads(line)
            other = [name for name, value in wanted.items() if made[name] != value]
            other += ["prompt"] if number >= len(asked) or made["prompt"] != asked[number] else []
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number + 1} is no sample: take another file") from None
        if other:
            raise ValueError(
                f"{path}, line {number + 1} is a sample of another {other[0]}: take another file"
            )
    if whole != lines:
        with path.open("r+b") as file:
            file.truncate(sum(len(line.encode("utf-8")) for line in whole))
    return len(whole)


def _append(made: dict[str, Any]) -> None:
    with Path(_OUTPUT.value).open("a", encoding="utf-8") as file:
        file.write(json.dumps(_line(made), ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write_pages(folder: epath.Path, samples: list[dict[str, Any]]) -> Iterator[Path]:
    """The page of --html; of --save `samples.txt`, `samples.json` and the report."""
    if _HTML.value:
        from mdlm_jax.evaluation import animation

        Path(_HTML.value).write_text(animation.page(samples, "mdlm_jax samples"), encoding="utf-8")
        yield Path(_HTML.value)
    if _SAVE.value:
        from mdlm_jax.evaluation.report import write_report  # matplotlib: seconds

        text = "\n\n".join(made["text"] for made in samples)
        (folder / "samples.txt").write_text(text + "\n", encoding="utf-8")
        told = json.dumps(samples, ensure_ascii=False, indent=None)
        (folder / "samples.json").write_text(told + "\n", encoding="utf-8")
        yield from (folder / "samples.txt", folder / "samples.json", write_report(folder))


if __name__ == "__main__":
    command_line.run(main)
