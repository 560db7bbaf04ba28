import gzip
import json
import os
from importlib.util import find_spec

import fsspec
import pytest

from mdlm_jax import data
from mdlm_jax.data.corpora.text_files import open_text_files


def read(files, *, documents="file", text_field="text", label_field="", **others):
    corpus = open_text_files(
        {"files": files, **others},
        documents=documents,
        text_field=text_field,
        label_field=label_field,
    )
    return {
        split: [data.Document(*document[:3]) for document in found]
        for split, found in corpus.read(None).items()
    }


def texts(*args, **kwargs):
    return [document.text for document in read(*args, **kwargs)["train"]]


def version(files):
    return open_text_files(
        {"files": files}, documents="file", text_field="text", label_field=""
    ).version


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        content = content if isinstance(content, bytes) else content.encode()
        packed = gzip.compress(content) if name.endswith(".gz") else content
        (tmp_path / name).write_bytes(packed)
        return str(tmp_path / name)

    return write


STORY = " one\n two\n\n \nthree\r\n\r\n\n four \n"


@pytest.mark.parametrize("name", ["story.txt", "story.txt.gz"])
@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", [" one\n two\n\n \nthree\n\n\n four \n"]),
        ("paragraph", [" one\n two", "three", " four "]),
        ("line", [" one", " two", "three", " four "]),
    ],
)
def test_documents_of_a_txt(write, name, documents, expected):
    assert texts(write(name, STORY), documents=documents) == expected


def test_byte_order_mark_is_no_text(write):
    assert texts(write("a.txt", "\ufeffword \ufeff")) == ["word \ufeff"]


def test_blank_documents_are_skipped(write):
    assert texts(f"{write('a.txt', '   ')},{write('b.txt', 'word')}") == ["word"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_lines_of_a_jsonl(write, name):
    rows = [{"body": "two\nlines", "kind": "b"}, {"kind": 7, "body": " "}, {"body": "x", "kind": 7}]
    path = write(name, "\n\n".join(map(json.dumps, rows)))
    assert texts(path, text_field="body") == ["two\nlines", "x"]
    labelled = read(path, text_field="body", label_field="kind")["train"]
    assert labelled == [data.Document("two\nlines", "b"), data.Document("x", "7")]


def test_globs_keep_their_order_and_no_file_comes_twice(write, tmp_path):
    for name in ("b.txt", "a.txt", "c[1].txt"):
        write(name, name)
    globs = f"{tmp_path}/b*.txt, {tmp_path}/*.txt,{tmp_path}/c[1].txt"
    assert texts(globs) == ["b.txt", "a.txt", "c[1].txt"]


def test_other_file_systems_are_read():
    memory = fsspec.filesystem("memory")
    memory.pipe("/room/a.txt", b"one")
    memory.pipe("/room/b.txt.gz", gzip.compress(b"two"))
    assert texts("memory://room/*") == ["one", "two"]
    assert texts("memory://room/b*, memory://room/a.txt") == ["two", "one"]
    before = version("memory://room/*")
    assert version("memory://room/*") == before
    memory.pipe("/room/a.txt", b"ten")
    assert version("memory://room/*") != before


def test_named_splits_are_read(write):
    named = {"validation_files": write("v.txt", "v"), "test_files": ""}
    assert read(write("t.txt", "t"), **named) == {
        "train": [data.Document("t", 0)],
        "validation": [data.Document("v", 0)],
    }


def test_version_follows_the_state_of_the_files(write, tmp_path):
    path = write("a.txt", "one")
    os.utime(path, (1, 1))
    first = version(path)
    assert version(f"{tmp_path}/*.txt") == first
    os.utime(path, (2, 2))
    assert version(path) != first
    os.utime(path, (1, 1))
    assert version(path) == first
    write("a.txt", "longer")
    os.utime(path, (1, 1))
    assert version(path) != first
    other = write("b.txt", "longer")
    os.utime(other, (1, 1))
    assert len({version(path), version(other), version(f"{path},{other}")}) == 3


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.txt", b"good\nbad \xff!", {}, r"a\.txt, line 2 is not UTF-8: byte 9 \(0xff\)$"),
        ("a.txt", b"", {}, r"a\.txt is empty$"),
        ("a.txt.gz", b"", {}, r"a\.txt\.gz is empty$"),
        ("a.jsonl", '{"text": "x"}\n\n{"text": ', {}, r"a\.jsonl, line 3 is not JSON: .* column"),
        ("a.jsonl", "[1]", {}, r"a\.jsonl, line 1 must be an object with fields, got \[1\]$"),
        ("a.jsonl", '{"x": 1}', {}, r"line 1 has no text_field 'text': its fields are x$"),
        ("a.jsonl", '{"text": 1}', {}, r"line 1: text_field 'text' must be a string, got 1$"),
        (
            "a.jsonl",
            '{"text": "x", "k": true}',
            {"label_field": "k"},
            r"line 1: label_field 'k' must be a string or an integer, got true$",
        ),
        ("a.jsonl", '{"text": "x\\ud800"}', {}, r"line 1: text_field 'text' holds '\\ud800', half"),
        ("a.jsonl", '{"text": "x"}', {"label_field": "k"}, r"line 1 has no label_field 'k': "),
        ("a.txt", "x", {"label_field": "k"}, r"label_field 'k' needs \.jsonl, .*, and .*a\.txt is"),
        ("a.txt", "x", {"text_field": "k"}, r"text_field is for \.jsonl, .*: there is none"),
        ("a.jsonl", "{}", {"documents": "line"}, r"documents is for \.txt: .* got 'line'$"),
        ("a.pdf", "x", {}, r"^files: .*a\.pdf must end in one of \.txt, .*\.gz, .*\.arrow$"),
    ],
)
def test_what_cannot_be_read_is_named(write, name, content, settings, message):
    path = write(name, content)
    with pytest.raises(ValueError, match=message) as error:
        read(path, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [slice(0, -9), slice(0, 30), slice(5, None)])
def test_broken_gzip_is_named(tmp_path, keep):
    packed = gzip.compress(" ".join(map(str, range(999))).encode())
    (tmp_path / "a.txt.gz").write_bytes(packed[keep])
    with pytest.raises(ValueError, match=r"a\.txt\.gz is broken gzip: \w[^\n]*$"):
        read(str(tmp_path / "a.txt.gz"))


def test_flipped_bits_of_a_gzip_are_named(tmp_path):
    packed = bytearray(gzip.compress(" ".join(map(str, range(999))).encode()))
    packed[len(packed) // 2] ^= 255
    (tmp_path / "a.txt.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"a\.txt\.gz is broken gzip: \w[^\n]*$"):
        read(str(tmp_path / "a.txt.gz"))


@pytest.mark.parametrize(
    ("glob", "message"),
    [
        ("no/such/*.txt", r"^files: 'no/such/\*\.txt' matches no file$"),
        ("no/such.txt", r"^files: 'no/such\.txt' matches no file$"),
        ("{folder}", r"^files: .* is a folder: name its files, .*/\*\.txt$"),
        ("rooms://a.txt", r"^files: cannot read 'rooms://a\.txt': .*not known"),
    ],
)
def test_globs_that_lead_nowhere_are_named(tmp_path, glob, message):
    with pytest.raises(ValueError, match=message):
        read(glob.format(folder=tmp_path))


@pytest.mark.skipif(find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_missing_reader_of_a_bucket_tells_what_to_install():
    with pytest.raises(ModuleNotFoundError, match=r"^files: .* pip install 'mdlm_jax\[gcs\]'$"):
        read("gs://a/b.txt")


def test_a_file_is_in_one_split_alone(write, tmp_path):
    path = write("a.txt", "x")
    with pytest.raises(ValueError, match=r"^validation_files: .*a\.txt is among .* train too"):
        read(f"{tmp_path}/*", validation_files=path)


@pytest.fixture
def config(write, tmp_path):
    rows = [
        {
            "text": f"word{i % 7} and another{i % 5}, then some more of {i}",
            "kind": [3, 10, -1][i % 3],
        }
        for i in range(400)
    ]
    path = write("rows.jsonl", "\n".join(map(json.dumps, rows)))
    return data.Config(
        source="text_files", files=path, label_field="kind", vocab_size=200, length=16
    )


def test_prepared_labels_are_named_and_sorted(config, tmp_path):
    prepared = data.prepare(config, tmp_path / "cache")
    assert prepared.label_names == ("-1", "3", "10")
    counts = [sizes["documents"] for sizes in prepared.card["splits"].values()]
    assert sum(counts) == 400
    for rows in prepared.splits.values():
        assert (rows.labels[:-1] <= rows.labels[1:]).all() and set(rows.labels) == {0, 1, 2}


def test_prepared_files_are_found_again_until_they_change(config, tmp_path):
    first = data.prepare(config, tmp_path / "cache")
    assert data.prepare(config, tmp_path / "cache").path == first.path
    os.utime(config.files, (1, 1))
    second = data.prepare(config, tmp_path / "cache")
    assert second.path != first.path and second.fingerprint == first.fingerprint


def test_documents_tell_where_they_stand(write):
    paths = f"{write('a.txt', 'one')},{write('b.jsonl', chr(10) + json.dumps({'text': 'x'}))}"
    corpus = open_text_files({"files": paths}, documents="file", text_field="text", label_field="")
    first, second = (document.place for document in corpus.read(None)["train"])
    assert first.endswith("a.txt") and second.endswith("b.jsonl, line 2")
