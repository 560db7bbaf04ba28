"""Folders that `save_to_disk` of Hugging Face `datasets` wrote: which files are of which split."""

import posixpath

from mdlm_jax.data import json_text, reading

# The words by which `datasets` itself knows splits.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

_OF_DATASET, _OF_SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: reading.File) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any(_within(folder, name).exists() for name in (_OF_DATASET, _OF_SPLITS))


def splits(folder: reading.File) -> dict[str, list[reading.File]]:
    """The Arrow files of a saved dataset, or of each split of several.

    Args:
      folder: that `is_saved`.

    Returns:
      Files in their order by split: 'train' and perhaps 'validation' and 'test' of a DatasetDict,
      whose other splits are left out; '' of a Dataset, which is of no split.

    Raises:
      ValueError: a description in it is damaged, or a DatasetDict has no split 'train'.
      OSError: it cannot be read.
    """
    if not _within(folder, _OF_SPLITS).exists():
        return {"": _files(folder)}
    names = json_text.load(_within(folder, _OF_SPLITS).name).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{_within(folder, _OF_SPLITS).name} is damaged: it lists no splits")
    found = {}
    for split, words in _SPLITS.items():
        called = [name for name in names if name in words]
        if len(called) > 1:
            raise ValueError(
                f"{folder.name} has the splits {', '.join(called)}, which all mean {split}: name "
                f"one, such as {_within(folder, called[0]).name}"
            )
        if called:
            found[split] = _files(_within(folder, called[0]))
    if "train" not in found:
        listed = ", ".join(names) or "none"
        example = _within(folder, names[0] if names else "train").name
        raise ValueError(
            f"{folder.name} has no split 'train', its splits are {listed}: name one, such as "
            f"{example}"
        )
    return found


def _files(folder: reading.File) -> list[reading.File]:
    place = _within(folder, _OF_DATASET)
    state = json_text.load(place.name)
    listed = state.get("_data_files")
    names = [each.get("filename") if isinstance(each, dict) else None for each in listed or []]
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{place.name} is damaged: it lists no files of data")
    if state.get("_indices_data_files"):  # of versions before 2.0: the rows are in another order
        raise ValueError(f"{place.name}: the rows are chosen by indices: save the dataset anew")
    return [_within(folder, name) for name in names]


def _within(folder: reading.File, name: str) -> reading.File:
    return folder._replace(
        path=posixpath.join(folder.path, name), name=posixpath.join(folder.name, name)
    )
