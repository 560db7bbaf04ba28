"""Writes a checkpoint of Hugging Face, or the weights of a run, so that transformers opens it.

    python -m mdlm_jax.convert --source=google-bert/bert-base-uncased --target=models/bert
    python -m mdlm_jax.convert --source=runs/mine --target=models/mine

The source is a folder with config.json and weights (safetensors, sharded, or pytorch_model.bin), a
name of the Hugging Face hub, or the --workdir of a run or of what export wrote. The target opens
with AutoModelForMaskedLM.from_pretrained and AutoTokenizer.from_pretrained. BERT, RoBERTa,
DistilBERT and ModernBERT are read; RoBERTa is written as BERT, which computes the same. A run of
blocks stays one for this library's commands. transformers knows no blocks: there each token sees
the whole text.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from mdlm_jax.data import reading
from mdlm_jax.host import command_line, paths
from mdlm_jax.interop import Pretrained, load_pretrained, save_pretrained
from mdlm_jax.runs import models, workdir

_SOURCE = command_line.define_path("source", None, "Folder, name of the hub, or folder of a run.")
_TARGET = command_line.define_path("target", None, "Folder to write: empty, or made.")
_MASK_ID = flags.DEFINE_integer(
    "mask_id", None, "The mask token, if the source has no tokenizer with one.", 0
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "params"], "Averaged or raw weights, of a run."
)
command_line.require("source", "target")


def main() -> int:
    """Writes the folder; returns the exit code."""
    with command_line.bad_input():
        pretrained, note = _read(_SOURCE.value)
        save_pretrained(_TARGET.value, pretrained)
        if note:
            paths.write(Path(_TARGET.value, models.NOTE), json.dumps(note, indent=2) + "\n")
    config, size = pretrained.config, note.get("objective", {}).get("block_size")
    print(
        f"written: {_TARGET.value}, {config.layers} layers of width {config.width}, "
        f"{config.vocab_size:,} tokens, the mask {config.mask_id}"
    )
    if size:
        print(
            f"trained in blocks of {size}: generate, evaluate and serve keep to them; in "
            "transformers each token sees the whole text, which is not what was trained"
        )
    return 0


def _read(source: str) -> tuple[Pretrained, dict[str, Any]]:
    """The checkpoint; of a run, also what is to be known of its training."""
    run = reading.path(source)
    if (run / "checkpoints").is_dir():
        trained = workdir.load(run, weights=_WEIGHTS.value)
        pretrained = Pretrained(trained.params, trained.encoder, trained.tokenizer)
        return pretrained, models.note_of(trained)
    return load_pretrained(source, mask_id=_MASK_ID.value), {}


if __name__ == "__main__":
    command_line.run(main)
