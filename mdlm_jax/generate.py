"""Writes text, or fills the gaps of a prompt, with a trained model.

    python -m mdlm_jax.generate --workdir=runs/quickstart --prompt "The city of [MASK] [MASK]"

Every [MASK] of a prompt is one token to be filled; what would follow the prompt is unknown, and
stays masked for the model. Without a prompt a whole row is written from nothing but masks. More
--steps are better text, one step is BERT filling all masks at once.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from mdlm_jax import command_line, data, workdir
from mdlm_jax.diffusion import sample
from mdlm_jax.experiment import STRATEGIES
from mdlm_jax.networks import bert

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_PROMPTS = flags.DEFINE_multi_string("prompt", [], "Text with [MASK]s; may be given several times.")
_SAMPLES = flags.DEFINE_integer("samples", 1, "Samples of each prompt.", 1)
_STEPS = flags.DEFINE_integer("steps", 64, "Network evaluations.", 1)
_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "exact_count",
    sorted(STRATEGIES),
    "exact_count: blanks in a random order, evenly; ancestral: the reverse process, each blank "
    "alone; confidence: the surest first (MaskGIT), plainer text.",
)
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params"], "Averaged or raw weights.")
_SEED = flags.DEFINE_integer("seed", 0, "Another seed is another text.", 0)
_SAVE = flags.DEFINE_bool(
    "save", False, "Also write samples.txt, samples.json and report.html into the workdir."
)
command_line.require("workdir")


def main() -> int:
    """Prints what the prompts of the flags are filled to; returns the exit code."""
    with command_line.bad_input():
        folder = Path(_WORKDIR.value)
        trained = workdir.load(folder, weights=_WEIGHTS.value)
        prompts = [p for p in (_PROMPTS.value or [""]) for _ in range(_SAMPLES.value)]
        canvas, wanted = _canvas(prompts, trained)

    encoder = trained.encoder

    @jax.jit
    def write(params, key, canvas, wanted, steps):
        return sample(
            bert.denoiser(params, encoder),
            key,
            canvas,
            mask_id=encoder.mask_id,
            steps=steps,
            strategy=STRATEGIES[_STRATEGY.value](),
            fill=wanted,
        )

    tokens = write(trained.params, jax.random.key(_SEED.value), canvas, wanted, _STEPS.value)
    tokens = np.asarray(tokens)
    shown = wanted | (canvas != encoder.mask_id)
    texts = [
        data.decode(trained.tokenizer, t[s]) for t, s in zip(tokens, np.asarray(shown), strict=True)
    ]
    text = "\n\n".join(texts)
    print(text)
    if _SAVE.value:
        _save(folder, text, prompts, tokens, np.asarray(wanted), np.asarray(shown), trained)
    return 0


def _canvas(prompts: list[str], trained: workdir.Trained) -> tuple[jax.Array, jax.Array]:
    """Canvases `i32[B, L]` and the positions that are to be filled, `bool[B, L]`.

    Raises:
      ValueError: a prompt is longer than a row, has no [MASK], or a character without a token.
    """
    length, mask_id = trained.encoder.max_length, trained.encoder.mask_id
    unknown = data.special_ids(trained.tokenizer).unk
    canvas = np.full((len(prompts), length), mask_id, np.int32)
    wanted = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
        if not prompt:
            wanted[row] = True
            continue
        ids = trained.tokenizer.encode(prompt, add_special_tokens=False).ids
        if len(ids) > length:
            raise ValueError(f"--prompt has {len(ids)} tokens, a row of this model has {length}")
        if mask_id not in ids:
            raise ValueError(f"--prompt {prompt!r} has nothing to fill: mark gaps by [MASK]")
        if unknown in ids:
            raise ValueError(
                f"--prompt {prompt!r} has characters that the model's tokenizer does not know"
            )
        canvas[row, : len(ids)] = ids
        wanted[row, : len(ids)] = np.array(ids) == mask_id
    return jnp.asarray(canvas), jnp.asarray(wanted)


def _save(folder, text, prompts, tokens, wanted, shown, trained) -> None:
    """`samples.txt` for people, `samples.json` for the report, and the report."""
    from mdlm_jax.evaluation.report import write_report  # matplotlib: seconds

    samples = [
        {
            "prompt": prompt,
            "pieces": _pieces(trained.tokenizer, row[s], w[s]),
            "steps": _STEPS.value,
            "strategy": _STRATEGY.value,
            "seed": _SEED.value,
        }
        for prompt, row, w, s in zip(prompts, tokens, wanted, shown, strict=True)
    ]
    (folder / "samples.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "samples.json").write_text(json.dumps(samples, indent=2, ensure_ascii=False) + "\n")
    print(f"\nwritten: {folder / 'samples.txt'}, {folder / 'samples.json'}, {write_report(folder)}")


def _pieces(tokenizer, tokens: np.ndarray, generated: np.ndarray) -> list[tuple[str, bool]]:
    """Runs of text, each with whether it was generated; joined they are the text.

    A run is what it adds to the text before it, because a word piece alone is decoded otherwise.
    """
    borders = [*(np.flatnonzero(np.diff(generated)) + 1), len(tokens)]
    pieces, before = [], ""
    for border in borders:
        text = data.decode(tokenizer, tokens[:border])
        pairs = enumerate(zip(before, text, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(before), len(text)))
        pieces.append((text[same:], bool(generated[border - 1])))
        before = text
    return pieces


if __name__ == "__main__":
    command_line.run(main)
