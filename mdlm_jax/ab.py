"""Compares two versions on the same prompts: paired differences with 95 % intervals.

    python -m mdlm_jax.ab --a=models:/quickstart/1 --b=models:/quickstart/2 --prompts=asked.jsonl

Each line of the file is a prompt as generate takes it, with the "reference" that is wanted:

    {"prompt": "The city of [MASK] lies on", "reference": "The city of Paris lies on"}
    {"prompt": "What is the capital of France?", "reference": "Paris"}

of a prompt with gaps the whole text, otherwise the response. Measured are exactness and token F1,
the likelihood of the references and of what was written, network evaluations and time. --a and --b
are versions of the registry, folders of runs, or checkpoints of Hugging Face; a folder writes with
the defaults of generate.

--output=FOLDER keeps ab.json, the picture ab.png, and ab_prompts.jsonl with the figures of each
prompt.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mdlm_jax.host import command_line, compilation, parallel, paths
from mdlm_jax.pages import ab_table
from mdlm_jax.serving import digests
from mdlm_jax.serving.versions import comparing, references, registry, storage
from mdlm_jax.writing import model as models
from mdlm_jax.writing import prompts, requests, wanted

_A = flags.DEFINE_string(
    "a", None, "What is there: models:/NAME/1, models:/NAME@champion, or a folder."
)
_B = flags.DEFINE_string("b", None, "What may replace it.")
_PROMPTS = command_line.define_path(
    "prompts", None, 'File .jsonl of prompts, each with its "reference".'
)
_OUTPUT = command_line.define_path("output", None, "Folder for ab.json, ab.png, ab_prompts.jsonl.")
_SAMPLES = flags.DEFINE_integer("samples", 1, "Texts of each prompt.", 1)
_DRAWS = flags.DEFINE_integer("draws", 32, "Masks of each row whose likelihood is estimated.", 2)
_SEED = flags.DEFINE_integer("seed", 0, "Of what is written, of masks and of resamples.", 0, 2**32)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows at a time.", 1)
command_line.require("a", "b", "prompts")

_FILES = ("ab.json", "ab.png", "ab_prompts.jsonl")


def main() -> int:
    """Compares, prints and writes; returns the exit code."""
    with command_line.bad_input():
        parallel.available_devices()
        compilation.keep()
        folder = Path(_OUTPUT.value) if _OUTPUT.value else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name in _FILES:
                paths.check_output(folder / name)
        a, b = _sides()
        asked = _read(a.model)
        planned = comparing.plan(a, b, asked)
    record, of_prompts = comparing.compare(
        planned,
        seed=_SEED.value,
        samples=_SAMPLES.value,
        draws=_DRAWS.value,
        batch_size=_BATCH_SIZE.value,
    )
    print(ab_table.table(record))
    if folder is not None:
        _write(folder, record, asked, of_prompts)
    return 0


def _sides() -> list[comparing.Side]:
    """Both versions; of the same model they share the parameters."""
    sides: list[comparing.Side] = []
    for flag, given in (("a", _A.value), ("b", _B.value)):
        side = _registered(given) if references.is_reference(given) else _folder(given)
        for other in sides:
            if other.version == side.version:
                raise ValueError(f"--{flag}={given}: both are the same version")
            if other.version.model == side.version.model:
                side = side._replace(model=side.version.of_model(other.model))
        sides.append(side)
    return sides


def _registered(given: str) -> comparing.Side:
    reference = references.parse(given)
    client = registry.connect()
    found = registry.find(client, reference)
    name = f"{found.name}/{found.number}"
    return comparing.Side(name, found.version, storage.load(client, found))


def _folder(given: str) -> comparing.Side:
    model = models.load(paths.plain(given))
    return comparing.Side(given, digests.of(model, requests.Options()), model)


def _read(model: models.Model) -> wanted.Wanted:
    """The prompts, by the names of the data that a was trained on too."""
    config = model.card.get("config", {})
    fields = prompts.fields(model.card, labels=bool(model.encoder.classes))
    response = config.get("text_field", "") if config.get("prompt_field") else ""
    return wanted.read(_PROMPTS.value, fields, response)


def _write(
    folder: Path,
    record: dict[str, Any],
    asked: wanted.Wanted,
    of_prompts: Mapping[str, Sequence[np.ndarray]],
) -> None:
    from mdlm_jax.pages.ab_plot import ab_png  # matplotlib: seconds

    lines = []
    for number, (prompt, text) in enumerate(zip(*asked, strict=True)):
        figures = {
            name: [float(side[number]) for side in sides] for name, sides in of_prompts.items()
        }
        lines.append(json.dumps({"prompt": prompt.text, "reference": text, **figures}))
    finite = comparing.as_json(record)
    contents = (json.dumps(finite, indent=2) + "\n", ab_png(record), "\n".join(lines) + "\n")
    for name, content in zip(_FILES, contents, strict=True):
        paths.write(folder / name, content)
    print(f"written: {', '.join(str(folder / name) for name in _FILES)}")


if __name__ == "__main__":
    command_line.run(main)
