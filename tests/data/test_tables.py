"""Parquet and saved datasets: what a row is, and how what is wrong with one is said."""

import datetime
import json
import shutil
import sys
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from mdlm_jax import data
from mdlm_jax.data.corpora import tables
from mdlm_jax.data.corpora.text_files import open_text_files

TALKS = [[{"role": "user", "content": f"é {i}"}, {"role": "assistant", "content": f" {i}\r\n"}]
         for i in range(7)]  # fmt: skip
LINES = [
    {"text": f"wörd {i}\r\n end " if i % 3 else " ", "p": f"{i}?", "k": i % 2 * 7, "m": talk}
    for i, talk in enumerate(TALKS)
]


def corpus(files, **fields):
    named = {"documents": "file", "text_field": "text", "label_field": "", **fields}
    globs = {name: str(named.pop(name)) for name in ("validation_files",) if name in named}
    return open_text_files({"files": str(files), **globs}, **named)


def read(files, **fields):
    return {
        split: [document._replace(place=Path(document.place).name) for document in found]
        for split, found in corpus(files, **fields).read(None).items()
    }


def as_parquet(folder, table):
    parquet.write_table(table, folder / "a.parquet", row_group_size=3)
    return folder / "a.parquet"


def as_arrow(open_writer, folder, table):
    with open_writer(folder / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return folder / "a.arrow"


def as_saved(folder, table):
    datasets.Dataset(table).save_to_disk(folder / "saved", num_shards=2)
    return folder / "saved"


FORMS = {
    "parquet": as_parquet,
    "stream": lambda *args: as_arrow(pa.ipc.new_stream, *args),
    "file": lambda *args: as_arrow(pa.ipc.new_file, *args),
    "saved": as_saved,
}
FIELDS = {
    "text": {},
    "labels": {"label_field": "k"},
    "pairs": {"prompt_field": "p", "label_field": "k"},
    "talks": {"messages_field": "m", "template": data.ChatTemplate()},
}


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_what_a_line_of_json_is(tmp_path, monkeypatch, form, fields):
    monkeypatch.setattr(tables, "_ROWS", 4)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    path = FORMS[form](tmp_path, pa.Table.from_pylist(LINES))
    found, lines = (
        read(which, **FIELDS[fields])["train"] for which in (path, tmp_path / "a.jsonl")
    )
    assert [row[:3] for row in found] == [line[:3] for line in lines] and len(found) >= 4
    if form != "saved":  # whose shards each begin anew
        numbers = [line.place.partition(", line ")[2] for line in lines]
        assert [row.place for row in found] == [f"{path.name}, row {number}" for number in numbers]


TEXTS = ["x", "é\n", "漢字" * 300]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int8(), pa.string()),
    ],
    ids=str,
)
def test_text_may_be_of_any_kind_of_string(tmp_path, kind):
    column = pa.array([text.encode() if "binary" in str(kind) else text for text in TEXTS], kind)
    for form in (as_parquet, FORMS["stream"]):
        path = form(tmp_path, pa.table({"text": column, "k": column}))
        found = read(path, label_field="k")["train"]
        assert [document.text for document in found] == TEXTS
        assert [document.label for document in found] == TEXTS


def test_other_columns_may_hold_anything(tmp_path):
    table = pa.table({"when": pa.array([0], pa.timestamp("s")), "text": ["x"], "b": [b"\xff"]})
    (found,) = read(as_parquet(tmp_path, table))["train"]
    assert found == data.Document("x", 0, None, "a.parquet, row 1")


def test_class_labels_have_their_names(tmp_path):
    dataset = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "k": [1, 0, 1]})
    dataset = dataset.cast_column("k", datasets.ClassLabel(names=["no", "yes"]))
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "a.parquet", tmp_path / "saved"):
        found = read(path, label_field="k")["train"]
        assert [document.label for document in found] == ["yes", "no", "yes"]
    table = dataset.data.table.set_column(1, "k", pa.array([0, 1, -1]))
    table = table.replace_schema_metadata(dataset.data.table.schema.metadata)
    path = as_parquet(tmp_path, table)
    with pytest.raises(ValueError, match=r"a\.parquet, row 3: label_field 'k' is -1, and its clas"):
        read(path, label_field="k")


def not_utf8():
    return pa.Array.from_buffers(pa.string(), 2, pa.array([b"x", b"y\xe9"]).buffers())


def nested_not_utf8():
    roles = pa.array(["user", "assistant"])
    messages = pa.StructArray.from_arrays([roles, not_utf8()], ["role", "content"])
    return pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), messages)


TALK = {"messages_field": "text", "template": data.ChatTemplate()}


@pytest.mark.parametrize(
    ("column", "fields", "message"),
    [
        (["x"], {"text_field": "body"}, r" has no text_field 'body': its columns are text$"),
        (["x"], {"label_field": "k"}, r" has no label_field 'k': its columns are text$"),
        ([1], {}, r": text_field 'text' must hold strings, it holds int64$"),
        ([["x"]], {}, r": text_field 'text' must hold strings, it holds list<"),
        ([1.5], {"label_field": "text"}, r": text_field 'text' must hold strings, it holds double"),
        (["x", None], {}, r", row 2: text_field 'text' must be a string, got null$"),
        ([None], {}, r", row 1: text_field 'text' must be a string, got null$"),
        (not_utf8(), {}, r", row 2: text_field 'text' is not UTF-8: byte 1 \(0xe9\)$"),
        (nested_not_utf8(), TALK, r", row 1: messages_field 'text' is not UTF-8: byte 1 \(0xe9\)$"),
        (["x"], TALK, r", row 1: messages_field 'text' must be a list of messages .*, got \"x\"$"),
        ([[{"role": "user", "at": 0}]], TALK, r", row 1: .*message 1 must have the texts"),
        (
            [[{"role": "user", "content": datetime.datetime(1970, 1, 1)}]],
            TALK,
            r", row 1: .*message 1 must have the texts .*got \{.*1970",
        ),
    ],
)
@pytest.mark.parametrize("form", ["parquet", "stream", "file"])
def test_what_is_wrong_with_a_row_is_named(tmp_path, form, column, fields, message):
    path = FORMS[form](tmp_path, pa.table({"text": column}))
    with pytest.raises(ValueError, match=rf"{path.name}{message}") as error:
        read(path, **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [1.5, True, ["x"]])
def test_labels_are_strings_or_integers(tmp_path, value):
    path = as_parquet(tmp_path, pa.table({"text": ["x"], "k": [value]}))
    with pytest.raises(ValueError, match="label_field 'k' must hold strings or integers, it holds"):
        read(path, label_field="k")
    path = as_parquet(tmp_path, pa.table({"text": ["x", "y"], "k": [1, None]}))
    with pytest.raises(ValueError, match=r"row 2: label_field 'k' must be a string or .* got null"):
        read(path, label_field="k")


def test_a_column_that_is_there_twice_is_named(tmp_path):
    path = as_parquet(tmp_path, pa.table([["x"], ["y"]], names=["text", "text"]))
    with pytest.raises(ValueError, match=r"a\.parquet has 2 columns 'text'$"):
        read(path)


@pytest.mark.parametrize("form", ["parquet", "stream", "file"])
def test_damaged_tables_are_named(tmp_path, form):
    path = FORMS[form](tmp_path, pa.Table.from_pylist(LINES))
    whole = path.read_bytes()
    spoilt = whole[: len(whole) // 2] + b"\xff" * 60 + whole[len(whole) // 2 + 60 :]
    for contents in (b"hello there", whole[:5], whole[: len(whole) // 2], spoilt[:-30]):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=rf"{path.name} is damaged: ") as error:
            read(path)
        assert "\n" not in str(error.value)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{path.name} is empty$"):
        read(path)


def test_memory_does_not_grow_with_a_table(tmp_path):
    import tracemalloc

    path = tmp_path / "a.parquet"
    schema = pa.schema({"text": pa.string()})
    with parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for i in range(64):  # of a MiB each
            writer.write_table(pa.table({"text": [f"{i} " + "x" * 1022] * 1024}))
    tracemalloc.start()
    total, most = 0, 0
    for document in corpus(path).read(None)["train"]:
        total += len(document.text)
        most = max(most, pa.total_allocated_bytes())
    assert total > 2**26
    assert tracemalloc.get_traced_memory()[1] < 2**24 and most < 2**24
    tracemalloc.stop()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A DatasetDict of four splits, one of which is none of ours."""
    path = tmp_path_factory.mktemp("saved") / "all"
    texts = {"train": ["a", "b"], "dev": ["c"], "test": ["d"], "extra": ["e"]}
    splits = {name: datasets.Dataset.from_dict({"text": each}) for name, each in texts.items()}
    datasets.DatasetDict(splits).save_to_disk(path)
    return path


def texts_of(found):
    return {split: [document.text for document in each] for split, each in found.items()}


def test_a_dataset_dict_brings_its_splits(saved):
    assert texts_of(read(saved)) == {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    assert texts_of(read(saved / "extra", validation_files=saved / "train")) == {
        "train": ["e"],
        "validation": ["a", "b"],
    }
    assert texts_of(read(f"{saved}/[et]*")) == {"train": ["e", "d", "a", "b"]}


def test_other_file_systems_hold_tables(saved):
    memory = fsspec.filesystem("memory")
    memory.put(str(saved), "/tables/all", recursive=True)
    path = as_parquet(saved.parent, pa.table({"text": ["p"]}))
    memory.put(str(path), "/tables/a.parquet")
    found = corpus("memory://tables/all, memory://tables/*.parquet").read(None)
    assert texts_of(found) == {"train": ["a", "b", "p"], "validation": ["c"], "test": ["d"]}
    places = [document.place for document in found["train"]]
    assert places[0] == "memory:///tables/all/train/data-00000-of-00001.arrow, row 1"


@pytest.mark.parametrize("form", ["home", "url"])
def test_a_saved_dataset_is_named_as_any_file(saved, monkeypatch, form):
    monkeypatch.setenv("HOME", str(saved.parent))
    name = "~/all" if form == "home" else saved.as_uri()
    assert texts_of(read(name)) == texts_of(read(saved))


def test_rows_that_were_chosen_and_shuffled_are_saved_so(tmp_path):
    dataset = datasets.Dataset.from_dict({"text": list("abcdef")}).select([4, 1, 3])
    dataset.save_to_disk(tmp_path / "some")
    assert texts_of(read(tmp_path / "some")) == {"train": ["e", "b", "d"]}


def test_the_version_follows_a_saved_dataset(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    before = corpus(tmp_path / "copy").version
    assert corpus(tmp_path / "copy").version == before
    datasets.Dataset.from_dict({"text": ["new"]}).save_to_disk(tmp_path / "copy" / "dev")
    assert corpus(tmp_path / "copy").version != before


def test_what_is_wrong_with_a_saved_dataset_is_named(saved, tmp_path):
    with pytest.raises(ValueError, match=r"^validation_files: .*all holds the splits train, valid"):
        read(saved / "train", validation_files=saved)
    with pytest.raises(ValueError, match=r"^validation_files does nothing: .*has the split 'valid"):
        read(saved, validation_files=saved / "extra")
    shutil.copytree(saved, tmp_path / "copy")
    told = tmp_path / "copy" / "dataset_dict.json"
    for contents, message in (
        ('{"splits": ["sft"]}', r"^files: .*copy has no split 'train', its .* sft: .*copy/sft$"),
        ('{"splits": ["train", "val", "dev"]}', r"splits val, dev, which all mean validation"),
        ('{"splits": 3}', r"dataset_dict\.json is damaged: it lists no splits$"),
        ("{", r"dataset_dict\.json, line 1 is not JSON"),
    ):
        told.write_text(contents)
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "copy")
    (tmp_path / "copy" / "train" / "state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^files: .*state\.json is damaged: it lists no files"):
        read(tmp_path / "copy" / "train")
    next((tmp_path / "copy" / "test").glob("*.arrow")).unlink()
    with pytest.raises(ValueError, match=r"^files: .*test/data-00000"):
        read(tmp_path / "copy" / "test")


def test_tables_are_prepared(tmp_path):
    rows = [{"text": f"word{i % 7} and another{i % 5}, some more of {i}"} for i in range(400)]
    path = as_parquet(tmp_path, pa.Table.from_pylist(rows))
    made = data.prepare(data.Config(files=str(path), vocab_size=200, length=16), tmp_path / "cache")
    assert sum(split["documents"] for split in made.card["splits"].values()) == 400
    assert made.card["source"] == "text_files"


def test_a_missing_pyarrow_is_said_before_anything_is_read(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"arrow is read by pyarrow: pip install 'mdlm_j"):
        corpus(saved)
