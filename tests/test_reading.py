"""Every reader of what people write, and every oddity that such files come with."""

import codecs
import gzip
import io
import json
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import feather, parquet
from tokenizers import Tokenizer, models

from mdlm_jax import data, interop
from mdlm_jax.data.corpora.chat import load_template
from mdlm_jax.data.corpora.documents import whole
from mdlm_jax.data.corpora.text_files import open_text_files
from mdlm_jax.interop import descriptions
from mdlm_jax.pages.curves_plot import read_evaluations
from mdlm_jax.pages.runs import read_run
from mdlm_jax.runs import workdir
from mdlm_jax.writing import prompts

SHARED = Path(__file__).parent / "interop" / "golden" / "bert"
TALK = [{"role": "user", "content": "é?"}, {"role": "assistant", "content": "ü"}]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "é"]


def corpus(path, **fields):
    named = {"documents": "file", "text_field": "text", "label_field": "", **fields}
    found = open_text_files({"files": str(path)}, **named).read(None)["train"]
    return [document._replace(place="") for document in whole(found)]


def records(*of):
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in of)


def config(told):
    return json.dumps(told, ensure_ascii=False, indent=1)


def tokenizer_json():
    words = {word: i for i, word in enumerate(WORDS)}
    return Tokenizer(models.WordLevel(words, unk_token="[UNK]")).to_str(pretty=True)


RUN = {
    "format": 1,
    "objective": {},
    "note": "é",
    "model": {"vocab_size": 7, "mask_id": 4, "layers": 1},
}

# Of each reader: what its file is called, what stands in it, and how it is read.
READERS = {
    "documents": ("a.txt", "the é\nü\n", lambda path: corpus(path, documents="line")),
    "paragraphs": ("a.txt", "the é\nü\n\n\nö", lambda path: corpus(path, documents="paragraph")),
    "files": ("a.txt", " the é\n\n ü \n", corpus),
    "rows": ("a.jsonl", records({"text": "é\nü", "k": 3}, {"text": "ö", "k": "é"}),
             lambda path: corpus(path, label_field="k")),
    "pairs": ("a.jsonl", records({"text": "é", "p": "ü\n"}, {"text": " \u2028 ö", "p": ""}),
              lambda path: corpus(path, prompt_field="p")),
    "talks": ("a.jsonl", records({"m": TALK}), lambda path: corpus(
        path, messages_field="m", template=data.ChatTemplate())),
    "prompts": ("a.txt", " the [MASK] é\n\n[MASK]\u2028\n", prompts.read),
    "prompt records": ("a.jsonl", records({"prompt": "é"}, {"messages": TALK[:1], "label": 1}),
                       prompts.read),
    "template": ("a.jinja", "é{% for m in messages %}\n{{ m.content }}{% endfor %}",
                 lambda path: load_template(str(path)).prompt(TALK, "here")),
    "vocabulary": ("vocab.txt", "\n".join(WORDS) + "\n",
                   lambda path: data.load_tokenizer(path.parent).get_vocab()),
    "tokenizer": ("tokenizer.json", tokenizer_json(),
                  lambda path: data.load_tokenizer(path).to_str()),
    "tokenizer's config": ("tokenizer_config.json", config({"é": 1, "do_lower_case": False}),
                           lambda path: data.load_tokenizer(path.parent).encode("THE").tokens),
    "model's config": ("config.json", None, lambda path: descriptions.read(path.parent)),
    "run's config": ("config.json", config(RUN), lambda path: workdir.read_encoder(path.parent)),
    "run's card": ("data.json", config({"label_names": ["é"]}),
                   lambda path: workdir.label_names(path.parent)),
    "run": ("config.json", config(RUN), lambda path: read_run(path.parent).config),
    "evaluation": ("e.json", config({"é": 1, "nats_per_token": 1, "tokens": 2}),
                   lambda path: list(read_evaluations([path]).values())),
}  # fmt: skip
OF_JSON = {name for name, (file, _, _) in READERS.items() if ".json" in file}
OF_LINES = {name for name, (file, _, _) in READERS.items() if file == "a.jsonl"}


@pytest.fixture(params=READERS)
def reader(request, tmp_path):
    """`(name, path, text, read)`, what stands beside the file being there."""
    name, (file, text, read) = request.param, READERS[request.param]
    if name == "tokenizer's config":
        (tmp_path / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    if text is None:
        told = json.loads((SHARED / "config.json").read_text())
        text = config({**told, "é": 1})
    return name, tmp_path / file, text, read


def straight(reader):
    """What is read of the file as it should be."""
    _, path, text, read = reader
    path.write_bytes(text.encode())
    return read(path)


SAME = {
    "mark of UTF-8": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16, little": lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
    "UTF-16, big": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-32, little": lambda text: codecs.BOM_UTF32_LE + text.encode("utf-32-le"),
    "UTF-32, big": lambda text: codecs.BOM_UTF32_BE + text.encode("utf-32-be"),
    "Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "old Macs": lambda text: text.replace("\n", "\r").encode(),
    "mixed": lambda text: text.replace("\n", "\r", 1).replace("\n", "\r\n", 1).encode(),
}


@pytest.mark.parametrize("oddity", SAME)
def test_marks_and_line_endings_change_nothing(reader, oddity):
    expected = straight(reader)
    _, path, text, read = reader
    path.write_bytes(SAME[oddity](text))
    assert read(path) == expected


def refusal(read, path):
    with pytest.raises(ValueError) as caught:
        read(path)
    told = str(caught.value)
    assert "\n" not in told and str(path) in told
    return told


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda text: text.encode("utf-8").replace("é".encode(), b"\xe9"), "is not UTF-8: byte"),
        (lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le")[:-1], "is not UTF-16: byte"),
        (lambda text: text.encode("utf-16-le"), "line 1 is not UTF-8: byte 1 is 0, as in UTF-16"),
        (lambda text: b"", "is empty"),
        (lambda text: codecs.BOM_UTF8, "is empty"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(reader, write, message):
    _, path, text, read = reader
    path.write_bytes(write(text))
    told = refusal(read, path)
    if message == "is not UTF-8: byte":
        before = text.encode().partition("é".encode())[0]
        message = f", line {before.count(10) + 1} is not UTF-8: byte {len(before)} (0xe9)"
    assert message in told


BROKEN = {
    "torn": ('{"a": "b', "is not JSON"),
    "of another kind": ("[1]", "an object"),
    "deep": ("[" * 100_000, "is nested too deeply"),
    "deeper": ('{"a":' * 100_000, "is nested too deeply"),
    "long": ('{"a": ' + "9" * 5_000 + "}", "number"),
}


@pytest.mark.parametrize("oddity", BROKEN)
@pytest.mark.parametrize("name", sorted(OF_JSON - {"tokenizer"}))
def test_what_is_no_json_is_named_with_its_line(tmp_path, name, oddity):
    file, _, read = READERS[name]
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    text, message = BROKEN[oddity]
    blank = "\n\n" if name in OF_LINES else ""
    (tmp_path / file).write_text(blank + text)
    told = refusal(read, tmp_path / file)
    assert message in told
    assert (not blank) or ", line 3 " in told


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "1" * 400, "9" * 5_000])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("tokenizer's config", "do_lower_case"),
        ("model's config", "layer_norm_eps"),
        ("model's config", "hidden_size"),
    ],
)
def test_numbers_of_a_config_are_such_as_can_be_computed_with(tmp_path, name, key, number):
    file, _, read = READERS[name]
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    told = json.loads((SHARED / "config.json").read_text()) | {key: "HERE"}
    text = json.dumps(told, indent=0).replace('"HERE"', number)
    (tmp_path / file).write_text(text)
    told = refusal(read, tmp_path / file)
    line = text[: text.index(number)].count("\n") + 1
    assert key in told or f", line {line} has the number {number[:20]}: it must be finite" in told


def test_results_may_have_been_no_numbers(tmp_path):
    path = tmp_path / "e.json"
    path.write_text('{"nats_per_token": NaN, "tokens": 2}')
    assert len(read_evaluations([path])) == 1


HALF = r"\ud83d"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("rows", f'{{"text": "a {HALF}", "k": 1}}'),
        ("rows", f'{{"text": "a", "k": "{HALF}"}}'),
        ("pairs", f'{{"text": "a", "p": "{HALF}"}}'),
        ("talks", json.dumps({"m": TALK}).replace("?", HALF)),
        ("prompt records", f'{{"prompt": "{HALF}"}}'),
        ("prompt records", f'{{"prompt": "", "label": "{HALF}"}}'),
        ("prompt records", json.dumps({"messages": TALK}).replace("?", HALF)),
    ],
)
def test_half_a_character_is_named_with_its_line(tmp_path, name, line):
    file, text, read = READERS[name]
    (tmp_path / file).write_text(text + "\n" + line, encoding="utf-8")
    number = text.count("\n") + 2
    told = refusal(read, tmp_path / file)
    assert f"a.jsonl, line {number}: " in told and r"holds '\ud83d', half of a surrogate" in told
    whole = line.replace(HALF, r"\ud83d\ude00")
    (tmp_path / file).write_text(text + "\n" + whole, encoding="utf-8")
    assert read(tmp_path / file)


@pytest.mark.parametrize("name", ["rows", "prompt records"])
def test_numbers_are_labels(tmp_path, name):
    file, _, read = READERS[name]
    (tmp_path / file).write_text(records({"prompt": "a", "text": "b", "k": -3, "label": -3}))
    assert read(tmp_path / file)[0].label == "-3"
    for value in (True, 1.0, [1], {}):
        (tmp_path / file).write_text(
            records({"prompt": "a", "text": "b", "k": value, "label": value})
        )
        told = refusal(read, tmp_path / file)
        assert f"must be a string or an integer, got {json.dumps(value)}" in told


SUFFIXES = {
    "documents": [".TXT", ".text", ".Md", ".txt.GZ", ".txt.gzip"],
    "rows": [".JSONL", ".ndjson", ".NDJSON.gz", ".jsonlines", ".json"],
    "prompts": [".TXT", ".prompts", "", ".txt.gz"],
    "prompt records": [".JSONL", ".ndjson", ".NDJSON.gz", ".json"],
}


@pytest.mark.parametrize(
    ("name", "suffix"), [(name, suffix) for name, all_ in SUFFIXES.items() for suffix in all_]
)
def test_suffixes_may_be_others(tmp_path, name, suffix):
    file, text, read = READERS[name]
    expected = straight((name, tmp_path / file, text, read))
    packed = suffix.lower().endswith((".gz", ".gzip"))
    other = tmp_path / f"other{suffix}"
    other.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    assert read(other) == expected


PATHS = {
    "home": lambda path: f"~/{path.name}",
    "file URL": lambda path: f"file://{path}",
    "its host": lambda path: f"file://localhost{path}",
    "escaped": lambda path: path.as_uri().replace("-", "%2D"),
}


@pytest.mark.parametrize("form", PATHS)
@pytest.mark.parametrize("name", ["files", "rows", "prompts", "template", "tokenizer"])
def test_paths_may_be_written_otherwise(tmp_path, name, form, monkeypatch):
    file, text, read = READERS[name]
    expected = straight((name, tmp_path / file, text, read))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(PATHS[form](tmp_path / file)) == expected


@pytest.mark.parametrize("form", PATHS)
def test_folders_may_be_written_otherwise(tmp_path, form, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    assert data.load_tokenizer(PATHS[form](folder)).token_to_id("the") == 5
    assert interop.hub.folder(PATHS[form](folder)) == folder


# Tables, in which a row is what a line of JSON is: the same readers read them.
TABLES = {
    ".parquet": parquet.write_table,
    ".PARQUET": parquet.write_table,
    ".pq": parquet.write_table,
    ".arrow": feather.write_feather,
    "": lambda table, path: datasets.Dataset(table).save_to_disk(path),
}


def as_table(text):
    rows = [json.loads(line) for line in text.split("\n") if line]
    rows = [row | {"k": str(row["k"])} if "k" in row else row for row in rows]  # of one type
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize("name", sorted(OF_LINES - {"prompt records"}))
def test_tables_are_read_as_lines_are(tmp_path, name, suffix, monkeypatch):
    file, text, read = READERS[name]
    expected = straight((name, tmp_path / file, text, read))
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / f"table-é{suffix}"
    TABLES[suffix](as_table(text), path)
    assert read(path) == expected
    for form in PATHS.values():
        assert read(form(path)) == expected


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_what_is_no_table_is_named(tmp_path, suffix):
    _, text, read = READERS["rows"]
    path = tmp_path / f"a{suffix}"
    for contents, told in ((b"", " is empty"), (text.encode(), " is damaged: ")):
        path.write_bytes(contents)
        assert f"a{suffix}{told}" in refusal(read, path)


def test_a_name_that_only_looks_like_a_url_is_a_name(tmp_path):
    for name in ("a%20b::c.txt", "~nobody.txt"):
        (tmp_path / name).write_text("the [MASK]")
        assert [prompt.text for prompt in prompts.read(tmp_path / name)] == ["the [MASK]"]


def test_globs_pass_over_hidden_files_as_a_shell_does(tmp_path):
    for name in ("a.txt", ".b.txt", "._a.txt", "c/d.txt", ".e/f.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def found(pattern):
        return sorted(document.text for document in corpus(f"{tmp_path}/{pattern}"))

    assert found("*.txt") == ["a.txt"]
    assert found("**/*.txt") == ["a.txt", "c/d.txt"]
    assert found(".*.txt") == ["._a.txt", ".b.txt"]
    assert found(".b.txt") == [".b.txt"] and found(".e/*.txt") == [".e/f.txt"]


def test_names_of_files_and_folders_may_hold_anything(tmp_path, monkeypatch):
    folder = tmp_path / "sweep[1]"
    folder.mkdir()
    for name in ("a.txt", "b,c.txt", "d*[x].txt"):
        (folder / name).write_text(name)

    def found(pattern):
        return [document.text for document in corpus(pattern)]

    assert found(f"{folder}/*.txt") == ["a.txt", "b,c.txt", "d*[x].txt"]
    assert found(f"{folder}/b,c.txt") == ["b,c.txt"]
    monkeypatch.chdir(folder)
    assert found("*.txt") == found("./*.txt") == ["a.txt", "b,c.txt", "d*[x].txt"]
    assert found("d*[x].txt,a.txt") == ["d*[x].txt", "a.txt"]


CHARACTERS = st.text(st.sampled_from("aé漢😀\r\n\x85\u2028 "), min_size=1)


@given(CHARACTERS, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]), st.integers(1, 7))
def test_text_is_read_as_python_reads_it_wherever_blocks_end(text, encoding, block):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.reading, "_BLOCK", block)
        path = Path(folder) / "a.txt"
        path.write_bytes(text.encode(encoding))
        expected = path.read_text(encoding=encoding)
        assert data.reading.text(path) == expected
        assert list(data.reading.lines(path)) == list(io.StringIO(expected, newline="\n"))


def test_a_checkpoints_index_is_read_alike(tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "config.json").write_bytes((SHARED / "config.json").read_bytes())
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(codecs.BOM_UTF8 + json.dumps(index).encode())
    with pytest.raises(FileNotFoundError, match=r"missing: model-1\.safetensors"):
        interop.load_pretrained(tmp_path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"index\.json is nested too deeply"):
        interop.load_pretrained(tmp_path)


def test_lines_are_whole_wherever_blocks_end(tmp_path, monkeypatch):
    monkeypatch.setattr("mdlm_jax.data.reading._BLOCK", 5)
    text = "é\r\nüü\r\r\n\nlong line without an end 漢字\r"
    for encoding in ("utf-8", "utf-16", "utf-32"):
        (tmp_path / "a.txt").write_bytes(text.encode(encoding))
        lines = list(data.reading.lines(tmp_path / "a.txt"))
        assert lines == ["é\n", "üü\n", "\n", "\n", "long line without an end 漢字\n"]
    (tmp_path / "a.txt").write_bytes("é\r\rü\r\n".encode() + b"ab\xff")
    with pytest.raises(ValueError, match=r"a\.txt, line 4 is not UTF-8: byte 10 \(0xff\)$"):
        list(data.reading.lines(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": None}, "it has no section 'model'"),
        ({"model": {"layers": "x"}}, "model: "),
        ({"model": {"nolayer": 3}}, "model: .*'nolayer'"),
    ],
)
def test_a_config_of_a_run_that_describes_no_network_is_damaged(tmp_path, changed, told):
    (tmp_path / "config.json").write_text(json.dumps(RUN | changed))
    with pytest.raises(ValueError, match=rf"config\.json is damaged: {told}"):
        workdir.read_encoder(tmp_path)
