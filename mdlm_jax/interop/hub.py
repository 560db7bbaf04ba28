"""The folder of a checkpoint: a local one, or one that is fetched from the Hugging Face hub."""

import re
from pathlib import Path

from mdlm_jax.data import hub
from mdlm_jax.host import paths

_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_TEXTS = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"]
# PyTorch's only where there is no other.
_WEIGHTS = (
    ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"],
)
_ACCEPTED = "accepted are a folder, or a name of the Hugging Face hub (owner/name)"


def folder(path_or_name: str | Path, *, weights: bool = True) -> Path:
    """The folder of a checkpoint. One of the hub is fetched into Hugging Face's cache.

    Args:
      path_or_name: a folder, or a name of the hub.
      weights: whether to fetch them too, or only config.json and the tokenizer.

    Raises:
      FileNotFoundError: there is no such folder, and it is no name of the hub.
      ValueError: it is a file, or the hub does not provide it.
    """
    path = Path(paths.plain(path_or_name))
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(f"{path} is a file: {_ACCEPTED}")
    if not _NAME.fullmatch(str(path_or_name)):
        raise FileNotFoundError(f"no folder at {path}: {_ACCEPTED}")
    return _fetched(str(path_or_name), weights)


def _fetched(name: str, weights: bool) -> Path:
    import huggingface_hub  # a dependency of `tokenizers`; it takes a moment

    with hub.asked(f"{name!r} is no folder here", _ACCEPTED):
        if not weights:
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=_TEXTS))
        for files in _WEIGHTS:
            path = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_TEXTS, *files]))
            if any(path.glob(files[0])) or any(path.glob(files[2])):
                break
        return path
