"""The config file that `--config=RUN/config.json` stands for: what a run was trained with."""

from pathlib import Path
from typing import TYPE_CHECKING

from mdlm_jax.data import json_text
from mdlm_jax.experiment import FORMAT, FROM_DATA, default_config

if TYPE_CHECKING:
    import ml_collections


def get_config(path: str) -> "ml_collections.ConfigDict":
    """The config of a run; what the data decide of its encoder is left to the data.

    Raises:
      ValueError: the file is no config of a run, or one of a newer format.
    """
    saved = json_text.load(Path(path))
    number = saved.get("format")
    if not isinstance(number, int):
        raise ValueError(f"--config={path} is no config.json of a run: it has no format")
    if number > FORMAT:
        raise ValueError(
            f"--config={path} has format {number}, this version of mdlm_jax reads up to {FORMAT}"
        )
    config = default_config()
    for name in config.keys() & saved.keys():
        section = saved[name]
        if not isinstance(section, dict):
            config[name] = section
            continue
        for key, value in section.items():
            if name == "model" and key in FROM_DATA:
                continue
            if key not in config[name]:
                raise ValueError(f"--config={path}: {name} has a key {key} that is not known here")
            config[name][key] = value
    return config
