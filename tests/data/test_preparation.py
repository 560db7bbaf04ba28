import dataclasses
import subprocess
import sys
import threading

import numpy as np
import pytest

from mdlm_jax import data
from mdlm_jax.data import preparation


def test_default_corpus_loses_nothing_but_the_tail(wikipedia):
    for name, rows in wikipedia.splits.items():
        sizes = wikipedia.card["splits"][name]
        assert rows.tokens.shape == (sizes["tokens"] // 128, 128)
        assert len(rows) == len(rows.labels) == sizes["rows"]
        separators = int((rows.tokens == wikipedia.sep_id).sum())
        assert sizes["documents"] - 10 < separators <= sizes["documents"]
    assert sum(sizes["documents"] for sizes in wikipedia.card["splits"].values()) == 10_033


def test_default_corpus_holds_no_mask_or_padding_and_few_unknowns(wikipedia):
    tokens = np.concatenate([rows.tokens for rows in wikipedia.splits.values()])
    assert not np.isin(tokens, [wikipedia.mask_id, wikipedia.pad_id]).any()
    assert tokens.max() < wikipedia.vocab_size == 4096
    assert (tokens == 1).mean() < 1e-3


def test_card_tells_the_source_and_its_licence(wikipedia):
    assert wikipedia.card["source"] == "wikipedia_summaries"
    assert "CC BY-SA" in wikipedia.card["license"]
    assert wikipedia.card["config"]["tokenizer"] == "wordpiece"
    assert wikipedia.card["fingerprint"] == wikipedia.fingerprint
    assert wikipedia.label_names[6] == "People"


def test_rows_are_mapped_from_disk_in_sixteen_bits(wikipedia):
    tokens = wikipedia.splits["train"].tokens
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint16


def test_rows_are_the_documents(tiny_config, tiny_corpus, tmp_path):
    prepared = data.prepare(tiny_config, tmp_path)
    documents = tiny_corpus.read(tmp_path)["validation"]
    ordered = sorted(documents, key=lambda document: document.label)
    flat = [
        token
        for document in ordered
        for token in [*prepared.tokenizer.encode(document.text).ids, prepared.sep_id]
    ]
    rows = prepared.splits["validation"]
    np.testing.assert_array_equal(rows.tokens.ravel(), flat[: rows.tokens.size])
    assert prepared.card["splits"]["validation"] == {
        "documents": 12,
        "tokens": len(flat),
        "unknown_tokens": flat.count(1),
        "characters": sum(len(document.text) for document in documents),
        "bytes": sum(len(document.text.encode()) for document in documents),
        "rows": len(flat) // 16,
    }


def test_second_call_only_loads(tiny_config, tiny_corpus, tmp_path, monkeypatch):
    first = data.prepare(tiny_config, tmp_path)
    unreadable = tiny_corpus._replace(read=lambda cache_dir: pytest.fail("read again"))
    monkeypatch.setitem(data.SOURCES, "tiny", unreadable)
    second = data.prepare(tiny_config, tmp_path)
    assert second.path == first.path
    assert second.fingerprint == first.fingerprint
    for name in first.splits:
        np.testing.assert_array_equal(second.splits[name].tokens, first.splits[name].tokens)


def test_fingerprint_follows_contents_not_the_place(tiny_config, tmp_path):
    here, there = (data.prepare(tiny_config, tmp_path / name) for name in ("here", "there"))
    assert here.fingerprint == there.fingerprint


@pytest.mark.parametrize(
    "change",
    [{"tokenizer": "bpe", "vocab_size": 300}, {"vocab_size": 110}, {"length": 8}],
)
def test_another_configuration_is_other_data(tiny_config, tmp_path, change):
    first = data.prepare(tiny_config, tmp_path)
    second = data.prepare(dataclasses.replace(tiny_config, **change), tmp_path)
    assert first.path != second.path
    assert first.fingerprint != second.fingerprint


def test_another_corpus_version_is_prepared_anew(tiny_config, tiny_corpus, tmp_path, monkeypatch):
    first = data.prepare(tiny_config, tmp_path)
    monkeypatch.setitem(data.SOURCES, "tiny", tiny_corpus._replace(version="2"))
    assert data.prepare(tiny_config, tmp_path).path != first.path


@pytest.mark.parametrize("step", ["train_tokenizer", "pack", "_write_card"])
def test_killed_preparation_leaves_nothing_finished(tiny_config, tmp_path, monkeypatch, step):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    module = preparation.tokenization if step == "train_tokenizer" else preparation
    with monkeypatch.context() as patch:
        patch.setattr(module, step, killed)
        with pytest.raises(KeyboardInterrupt):
            data.prepare(tiny_config, tmp_path)
    assert not list(tmp_path.rglob("data.json"))
    assert not [path for path in tmp_path.glob("tiny-*") if path.suffix != ".incomplete"]

    prepared = data.prepare(tiny_config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", prepared.path.name]


def test_concurrent_calls_prepare_once(tiny_config, tiny_corpus, tmp_path, monkeypatch):
    reads, results = [], []

    def read(cache_dir):
        reads.append(cache_dir)
        return tiny_corpus.read(cache_dir)

    monkeypatch.setitem(data.SOURCES, "tiny", tiny_corpus._replace(read=read))
    threads = [
        threading.Thread(target=lambda: results.append(data.prepare(tiny_config, tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert len({result.fingerprint for result in results}) == 1
    assert len(results) == 4


def test_cache_folder_comes_from_the_environment(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("MDLM_JAX_CACHE", str(tmp_path / "named"))
    assert data.prepare(tiny_config).path.parent == tmp_path / "named"


def test_importing_and_loading_need_neither_grain_nor_tfds(tiny_config, tmp_path):
    path = data.prepare(tiny_config, tmp_path).path
    code = (
        "import sys; from mdlm_jax import data;"
        f"print(len(data.load_prepared({str(path)!r}).splits));"
        "print(*{'grain', 'tensorflow_datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "books"}, "source must be one of wikipedia_summaries.*, got 'books'"),
        ({"tokenizer": "words"}, "tokenizer must be one of wordpiece, bpe, got 'words'"),
        ({"vocab_size": 5}, "vocab_size must exceed the 5 special tokens, got 5"),
        ({"length": 1}, "length must be at least 2 tokens, got 1"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        data.Config(**change)


def test_split_shorter_than_a_row_is_named(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, length=1000)
    message = r"split '.*' of 'tiny' has \d+ tokens, fewer than one row of length 1000"
    with pytest.raises(ValueError, match=message):
        data.prepare(config, tmp_path)
    assert not list(tmp_path.rglob("data.json"))
