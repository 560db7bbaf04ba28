"""The weights of a Hugging Face folder as named arrays: safetensors, sharded, or PyTorch's zip."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp  # registers bfloat16 with NumPy, which safetensors needs
import numpy as np

from mdlm_jax.data import json_text

_SAFE, _TORCH = "model.safetensors", "pytorch_model.bin"
_INDEX = ".index.json"
# The first whose weights_only=True cannot be made to run code (CVE-2025-32434).
_TORCH_VERSION = (2, 6)


def find(folder: Path) -> list[Path]:
    """The files that hold the weights of a folder, safetensors before PyTorch's.

    Raises:
      ValueError: the index of a sharded checkpoint is damaged.
      FileNotFoundError: there are none, or a shard is missing.
    """
    for name in (_SAFE, _TORCH):
        if (folder / name).is_file():
            return [folder / name]
        if (folder / (name + _INDEX)).is_file():
            return _shards(folder / (name + _INDEX))
    raise FileNotFoundError(
        f"{folder} has no weights: accepted are {_SAFE}, {_TORCH}, or either sharded with its "
        f"{_INDEX.removeprefix('.')}"
    )


def read(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a folder by name, in float32; integers stay as they are.

    No code in a file is run: PyTorch reads its files with `weights_only=True`.

    Raises:
      FileNotFoundError: as `find`.
      ValueError: a file is damaged, holds more than arrays, or arrays of a type that is neither
        a float nor an integer.
      ImportError: PyTorch's files without PyTorch, or safetensors without that library.
    """
    arrays: dict[str, np.ndarray] = {}
    for path in find(folder):
        of_file = _read_torch(path) if path.suffix == ".bin" else _read_safetensors(path)
        arrays.update({name: _plain(path, name, array) for name, array in of_file.items()})
    return arrays


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file that transformers opens.

    Raises:
      ImportError: the safetensors library is not installed.
    """
    library = _safetensors(path)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    library.numpy.save_file(contiguous, path, metadata={"format": "pt"})


def _shards(index: Path) -> list[Path]:
    names = json_text.load(index).get("weight_map")
    names = sorted({*map(str, names.values())}) if isinstance(names, dict) else []
    if not names or not all(Path(name).name == name for name in names):
        raise ValueError(f"{index} is damaged: it must name files of its own folder")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{index} names files that are missing: {', '.join(missing)}")
    return [index.parent / name for name in names]


def _plain(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if np.issubdtype(array.dtype, np.integer) or array.dtype == np.bool_:
        return array
    if array.dtype in (np.float16, np.float32, np.float64, jnp.bfloat16):
        return array.astype(np.float32, copy=False)
    raise ValueError(
        f"{path}: {name} is {array.dtype}: accepted are float64, float32, float16 and bfloat16"
    )


def _safetensors(path: Path):
    try:
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            f"{path} needs the library safetensors: pip install 'mdlm_jax[interop]'"
        ) from None
    return safetensors


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    library = _safetensors(path)
    try:
        with library.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (library.SafetensorError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path} is a file of PyTorch and needs it: pip install 'mdlm_jax[interop]', or "
            f"convert it to {_SAFE} where PyTorch is installed"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < _TORCH_VERSION:
        raise ImportError(f"{path} needs torch 2.6 or newer to be read safely: update it")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of the pickle, the zip or the file: it is no such file
        message = " ".join(str(error).split()).partition(". ")[0]
        raise ValueError(
            f"{path} is no file of weights alone ({type(error).__name__}: {message})"
        ) from None
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{path} holds a {type(tensors).__name__}: it must hold named tensors")
    strange = [str(name) for name, x in tensors.items() if not isinstance(x, torch.Tensor)]
    if strange:
        raise ValueError(f"{path} holds more than tensors: {', '.join(strange)}")
    # NumPy lacks PyTorch's bfloat16; float32 holds the same values.
    return {
        name: (x.float() if x.is_floating_point() else x).numpy() for name, x in tensors.items()
    }
