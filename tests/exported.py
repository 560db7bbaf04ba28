"""The folder of a tiny model as `export` writes it, with random weights: nothing is trained."""

import dataclasses
import json

from command_runs import TEXT
from networks.tiny import params_of

from mdlm_jax import data
from mdlm_jax.networks import bert
from mdlm_jax.runs import workdir
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.training import checkpoints

LABELS = ("salt", "wool")
LENGTH, STEP = 16, 7


_DIFFUSION = ObjectiveConfig()


def write(
    folder,
    card=None,
    kind="wordpiece",
    vocab_size=121,
    length=LENGTH,
    objective=_DIFFUSION,
    **model,
):
    """Of a model with two classes; an odd vocabulary, which a tensor axis pads.

    What is in `card` is told of the data that nothing was trained on.
    """
    tokenizer = data.train_tokenizer([TEXT] * 3, kind=kind, vocab_size=vocab_size, lowercase=True)
    encoder = bert.Config(
        vocab_size=data.vocabulary_size(tokenizer),
        mask_id=data.special_ids(tokenizer).mask,
        max_length=length,
        **{"layers": 1, "width": 32, "heads": 2, "mlp_width": 32, "use_bias": False, **model},
    )
    config = {
        "format": workdir.FORMAT,
        "exported": "ema",
        "data": {"length": length},
        "objective": dataclasses.asdict(objective),
        "model": dataclasses.asdict(encoder),
    }
    folder.mkdir()
    checkpoints.save_params(folder / "checkpoints", params_of(encoder), item="ema", step=STEP)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "data.json").write_text(json.dumps({"label_names": LABELS, **(card or {})}))
    (folder / "config.json").write_text(json.dumps(config))
    return folder
