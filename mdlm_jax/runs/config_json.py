"""The config.json of a run: checks its format, and drops keys that no longer exist."""

from typing import Any

from etils import epath

from mdlm_jax.data import json_text
from mdlm_jax.runs.experiment import FORMAT

# Keys that no longer exist, with the value that all runs have now.
GONE = {"objective": {"weighting": "elbo"}}


def find(workdir: epath.Path) -> epath.Path:
    """The path of the config in the folder of a run.

    Raises:
      ValueError: there is none.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(f"{workdir} is not the folder of a run: it has no config.json")
    return path


def check(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The config in the form of this version.

    Args:
      config: the contents of the file.
      name: its name in messages.

    Raises:
      ValueError: it is no config of a run, is one of a newer format, or `without_gone` raises.
    """
    number = config.get("format")
    if not isinstance(number, int):
        raise ValueError(
            f"{name} is no config of a run: its format must be a number, not "
            f"{json_text.shown(number)}"
        )
    if number > FORMAT:
        raise ValueError(
            f"{name} has format {number}, this version of mdlm_jax reads up to {FORMAT}: update it"
        )
    return without_gone(config, name)


def without_gone(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The config without the keys in `GONE`.

    Raises:
      ValueError: such a key has another value than that.
    """
    config = dict(config)
    for section, gone in GONE.items():
        if not isinstance(config.get(section), dict):
            continue
        for key, value in gone.items():
            found = config[section].get(key, value)
            if found != value:
                raise ValueError(
                    f"{name} was made by an earlier version of mdlm_jax, which this one cannot "
                    f"follow: {section}.{key} is {found!r}, and only {value!r} is left"
                )
        config[section] = {k: v for k, v in config[section].items() if k not in gone}
    return config
