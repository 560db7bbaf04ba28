"""The config file behind `--config=RUN/config.json`: the config of a run."""

from typing import TYPE_CHECKING, Any

from mdlm_jax.data import json_text, reading
from mdlm_jax.runs import config_json
from mdlm_jax.runs.experiment import FROM_DATA, default_config

if TYPE_CHECKING:
    import ml_collections


def get_config(path: str) -> "ml_collections.ConfigDict":
    """The config of a run, without the fields of the encoder that the data decide.

    Raises:
      ValueError: as `config_json.check`, or a key is not known, or a value is of another type than
        the config's.
    """
    saved = config_json.check(json_text.load(reading.path(path)), f"--config={path}")
    config = default_config()
    for name in sorted(config.keys() & saved.keys()):
        section = saved[name]
        if not isinstance(section, dict):
            _set(config, name, section, f"--config={path}: {name}")
            continue
        for key, value in section.items():
            if name == "model" and key in FROM_DATA:
                continue
            if key not in config[name]:
                raise ValueError(f"--config={path}: {name} has a key {key} that is not known here")
            _set(config[name], key, value, f"--config={path}: {name}.{key}")
    return config


def _set(config: "ml_collections.ConfigDict", key: str, value: Any, place: str) -> None:
    try:
        config[key] = value
    except TypeError:
        was = config[key]
        wanted = "a section with keys" if hasattr(was, "keys") else f"like {json_text.shown(was)}"
        raise ValueError(f"{place} must be {wanted}, not {json_text.shown(value)}") from None
