import concurrent.futures
import dataclasses
import fcntl
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mdlm_jax import data
from mdlm_jax.data import preparation


@pytest.mark.slow
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
        "longest": max(len(prepared.tokenizer.encode(d.text).ids) + 1 for d in documents),
        "cut_tokens": 0,
    }


def test_padded_rows_are_one_document_each(tiny_config, tiny_corpus, tmp_path):
    config = dataclasses.replace(tiny_config, rows="padded", length=24)
    prepared = data.prepare(config, tmp_path)
    documents = tiny_corpus.read(tmp_path)["test"]
    encoded = [[*prepared.tokenizer.encode(d.text).ids, prepared.sep_id] for d in documents]
    rows, sizes = prepared.splits["test"], prepared.card["splits"]["test"]
    assert len(rows) == len(documents) == sizes["rows"]
    for ids, tokens, size, label, document in zip(
        encoded, rows.tokens, rows.sizes, rows.labels, documents, strict=True
    ):
        assert size == min(len(ids), 24)
        np.testing.assert_array_equal(tokens, (ids + [prepared.pad_id] * 24)[:24])
        assert label == document.label
    assert sizes["longest"] == max(map(len, encoded)) > 24
    assert sizes["cut_tokens"] == sum(max(len(ids) - 24, 0) for ids in encoded)


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
    [
        {"tokenizer": "bpe", "vocab_size": 300},
        {"vocab_size": 110},
        {"length": 8},
        {"rows": "padded"},
    ],
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


@pytest.mark.parametrize("step", ["train_tokenizer", "_write_npy", "_write_card"])
def test_killed_preparation_leaves_nothing_finished(tiny_config, tmp_path, monkeypatch, step):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, step, killed)
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


def test_prepared_data_is_found_by_its_fingerprint(tiny_config, tmp_path):
    assert data.find_prepared("0" * 64, tmp_path / "none") is None
    first = data.prepare(tiny_config, tmp_path)
    second = data.prepare(dataclasses.replace(tiny_config, length=8), tmp_path)
    assert data.find_prepared(first.fingerprint, tmp_path).path == first.path
    assert data.find_prepared(second.fingerprint, tmp_path).path == second.path
    assert data.find_prepared("0" * 64, tmp_path) is None
    first.path.rename(first.path.with_suffix(".incomplete"))
    assert data.find_prepared(first.fingerprint, tmp_path) is None
    for torn in ("{}", "[]", '{"fingerprint": "'):
        (second.path / "data.json").write_text(torn)
        with pytest.raises(ValueError, match=rf"^{second.path}/data.json is damaged \(.*\): "):
            data.find_prepared(first.fingerprint, tmp_path)


def test_given_tokenizer_is_used_and_identifies_the_data(tiny_config, tmp_path):
    trained = data.prepare(tiny_config, tmp_path)
    path = tmp_path / "given.json"
    path.write_bytes((trained.path / "tokenizer.json").read_bytes())
    config = data.Config(source="tiny", tokenizer=str(path), length=16)
    given = data.prepare(config, tmp_path)
    assert given.fingerprint == trained.fingerprint and given.path != trained.path
    assert data.prepare(config, tmp_path).path == given.path

    grown = data.load_tokenizer(path)
    grown.add_tokens(["stone mill"])
    grown.save(str(path))
    again = data.prepare(config, tmp_path)
    assert again.path != given.path and again.vocab_size == given.vocab_size + 1


def test_tokenizer_is_trained_on_the_first_characters_alone(tiny_config, tmp_path, monkeypatch):
    config = dataclasses.replace(tiny_config, tokenizer="characters")
    whole = data.prepare(config, tmp_path / "whole")
    monkeypatch.setattr(preparation, "TRAINING_CHARACTERS", 12)
    few = data.prepare(config, tmp_path / "few")
    assert few.vocab_size <= 5 + 12 < whole.vocab_size


def test_missing_splits_are_held_out(tmp_path, monkeypatch, tiny_corpus):
    documents = tiny_corpus.read(tmp_path)["train"]
    monkeypatch.setitem(
        data.SOURCES, "one", tiny_corpus._replace(read=lambda cache_dir: {"train": documents})
    )
    config = data.Config(source="one", vocab_size=120, length=16, held_out=0.2, split_by="position")
    sizes = data.prepare(config, tmp_path).card["splits"]
    total = sum(len(document.text) for document in documents)
    assert list(sizes) == ["train", "validation", "test"]
    assert sizes["test"]["characters"] == pytest.approx(total * 0.2, abs=1)
    assert sum(each["characters"] for each in sizes.values()) == pytest.approx(total, abs=2)


def test_holding_out_of_what_has_all_splits_is_refused(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, held_out=0.1)
    with pytest.raises(ValueError, match=r"^held_out does nothing for source 'tiny', which has"):
        data.prepare(config, tmp_path)


_CHECKED = {
    "source": "text_files",
    "files": "a.txt",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "../books"}, "^source must be one of wikipedia_summaries.*, got '../books'"),
        ({"source": "text_files"}, "^files must name the training text .* got ''"),
        ({"files": "*.txt", "source": "lm1b"}, "^files does nothing for source 'lm1b'; .*txt'"),
        ({"test_files": "x", "source": "lm1b"}, "^test_files does nothing for source 'lm1b'"),
        ({"documents": "line"}, "^documents does nothing for source 'wikipedia_summaries'"),
        ({"text_field": "body"}, "^text_field does nothing for source 'wikipedia_summaries'"),
        ({"label_field": "x"}, "^label_field does nothing for source 'wikipedia_summaries'"),
        ({**_CHECKED, "documents": "page"}, "^documents must be one of file, para.* got 'page'"),
        ({**_CHECKED, "text_field": ""}, "^text_field must name the field of the text, got ''"),
        ({**_CHECKED, "held_out": 0.5}, "^held_out must be above 0 and below 0.5, got 0.5"),
        ({**_CHECKED, "held_out": 0}, "^held_out must be above 0 and below 0.5, got 0"),
        ({**_CHECKED, "split_by": "hash"}, "^split_by must be one of documents, position, got"),
        (
            {**_CHECKED, "validation_files": "b", "test_files": "c", "split_by": "position"},
            "^split_by does nothing for source 'text_files' with validation_files and test_files",
        ),
        ({"tokenizer": "words"}, "^tokenizer must be one of wordpiece, bpe, char.*, got 'words'"),
        ({"vocab_size": 5}, "^vocab_size must exceed the 5 special tokens, got 5"),
        ({"length": 1}, "^length must be at least 2 tokens, got 1"),
        ({"rows": "ragged"}, "^rows must be one of packed, padded, got 'ragged'"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message) as error:
        data.Config(**change)
    assert "\n" not in str(error.value)


def test_split_shorter_than_a_row_is_named(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, length=1000)
    message = r"^the split '.*' of 'tiny' has \d+ documents of \d+ tokens, fewer than one row of "
    with pytest.raises(ValueError, match=message):
        data.prepare(config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize("rows", ["packed", "padded"])
def test_split_without_documents_is_named(tiny_config, tiny_corpus, tmp_path, monkeypatch, rows):
    empty = {**tiny_corpus.read(tmp_path), "train": []}
    monkeypatch.setitem(data.SOURCES, "tiny", tiny_corpus._replace(read=lambda cache_dir: empty))
    config = dataclasses.replace(tiny_config, rows=rows)
    with pytest.raises(ValueError, match=r"^the split 'train' of 'tiny' has 0 documents"):
        data.prepare(config, tmp_path)


def book(tmp_path, words=5000):
    path = tmp_path / "book.txt"
    path.write_text(" ".join(f"word{i}" for i in range(words)))
    return path


def test_files_alone_are_a_source(tmp_path):
    assert data.Config().source == "wikipedia_summaries"
    assert data.Config(files="a.txt").source == "text_files"
    assert data.Config(files="a.txt") == data.Config(source="text_files", files="a.txt")


def test_a_single_file_is_cut_by_position(tmp_path, capsys):
    config = data.Config(files=str(book(tmp_path)), vocab_size=300)
    prepared = data.prepare(config, tmp_path / "cache")
    told = "too few documents to hold whole ones out: validation and test come from the end of its"
    assert told in capsys.readouterr().err
    asked = dataclasses.replace(config, split_by="position")
    as_asked = data.prepare(asked, tmp_path / "cache")
    assert capsys.readouterr().err == ""
    assert prepared.fingerprint == as_asked.fingerprint
    assert prepared.card["config"]["split_by"] == "position"
    assert [len(rows) > 0 for rows in prepared.splits.values()] == [True] * 3


def test_a_single_file_that_is_too_short_says_so(tmp_path, capsys):
    config = data.Config(files=str(book(tmp_path, 300)), tokenizer="bpe", vocab_size=300)
    with pytest.raises(
        ValueError, match=r"'validation' .* fewer than one row .*: held_out is 0.05"
    ):
        data.prepare(config, tmp_path / "cache")
    assert capsys.readouterr().err == ""  # the refusal says it all


_PREPARE = """
import sys
from mdlm_jax import data
config = data.Config(
    source="text_files", files=sys.argv[1], documents="line", tokenizer="bpe", vocab_size=400,
    length=32,
)
print(data.prepare(config, sys.argv[2]).fingerprint)
"""


@pytest.fixture
def lines(tmp_path):
    """A file that takes a second or so to prepare."""
    words = np.random.default_rng(0).integers(0, 500, (8_000, 12))
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(" ".join(f"w{word}" for word in line) for line in words))
    return path


def test_full_disk_is_told_and_leaves_nothing(lines, tmp_path):
    """And in the same process: what is prepared of text needs neither grain nor TFDS."""
    cache = tmp_path / "cache"
    code = """
import resource, sys
from pathlib import Path
from mdlm_jax import data
config = data.Config(
    source="text_files", files=sys.argv[1], documents="line", tokenizer="bpe", vocab_size=400,
    length=32,
)
for most_bytes in (2_000, 60_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))
    try:
        data.prepare(config, sys.argv[2])
    except OSError as error:
        print(error, *[path.name for path in Path(sys.argv[2]).iterdir()])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
print(*data.load_prepared(data.prepare(config, sys.argv[2]).path).splits)
print(*{"grain", "tensorflow_datasets"} & set(sys.modules))
"""
    command = [sys.executable, "-c", code, str(lines), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *full, splits, imported = done.stdout.splitlines()
    assert len(full) == 2
    for told in full:
        assert re.fullmatch(rf"\[Errno \d+\] no room for .*: '{cache}' lock", told), told
    assert (splits, imported) == ("train validation test", "")


def _times(cache):
    try:
        return {path.stat().st_mtime_ns for path in cache.glob("text_files-*")}
    except FileNotFoundError:  # The process just removed what an earlier one left.
        return set()


@pytest.mark.slow
def test_preparation_killed_at_any_moment_is_made_again(lines, tmp_path):
    command = [sys.executable, "-c", _PREPARE, str(lines)]
    begun = time.monotonic()
    whole = subprocess.run([*command, tmp_path / "whole"], capture_output=True, check=True).stdout
    seconds = time.monotonic() - begun
    cache = tmp_path / "cache"
    was_incomplete = 0
    # The first moments after something is there, however slow the machine; then any.
    for moment in [0, 0.05, 0.1, *np.random.default_rng(1).uniform(0, 0.8, 7)]:
        with subprocess.Popen([*command, cache], stdout=subprocess.PIPE) as process:
            before = _times(cache)
            while process.poll() is None:
                if _times(cache) - before:
                    break
                time.sleep(0.002)
            time.sleep(moment * seconds)
            process.kill()
        left = [path for path in cache.glob("text_files-*") if path.is_dir()]
        finished = [path for path in left if path.suffix != ".incomplete"]
        was_incomplete += bool(left) and not finished
        if finished:
            assert data.load_prepared(finished[0]).fingerprint == whole.decode().strip()
            shutil.rmtree(finished[0])
    assert was_incomplete > 2
    again = subprocess.run([*command, cache], capture_output=True, check=True).stdout
    assert again == whole
    assert len(list(cache.iterdir())) == 2  # it and the lock: no claim of those that were killed


def test_a_second_preparation_waits_and_says_so(tmp_path, tiny_config, capsys):
    with (tmp_path / "lock").open("w") as held, concurrent.futures.ThreadPoolExecutor() as pool:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = pool.submit(data.prepare, tiny_config, tmp_path)
        told, deadline = "", time.monotonic() + 60
        while not told and time.monotonic() < deadline:
            time.sleep(0.01)
            told = capsys.readouterr().err
        assert told == f"waiting for another process that prepares data in {tmp_path}\n"
        assert not second.done()
        fcntl.flock(held, fcntl.LOCK_UN)
        assert second.result().splits["train"]
