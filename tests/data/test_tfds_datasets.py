import pickle
import subprocess
import sys

import pytest
from sayings import KINDS, store

from mdlm_jax import data
from mdlm_jax.data.corpora import tfds_datasets
from mdlm_jax.data.corpora.tfds_datasets import open_tfds


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    store(root)
    return root


@pytest.fixture(autouse=True)
def tfds_data_dir(stored, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(stored))


def config(**changes):
    return data.Config(**{"source": "sayings", "vocab_size": 200, "length": 16, **changes})


def test_dataset_is_read_and_the_missing_split_held_out(tmp_path):
    prepared = data.prepare(config(), tmp_path)
    documents = {name: s["documents"] for name, s in prepared.card["splits"].items()}
    assert documents["validation"] == 30
    assert documents["train"] + documents["test"] == 300 and 5 < documents["test"] < 30
    assert prepared.label_names == ()
    assert not prepared.splits["train"].labels.any()
    assert "public domain" in prepared.card["license"]
    text = data.decode(prepared.tokenizer, prepared.splits["train"].tokens[:3].ravel())
    assert "saying number" in text


@pytest.mark.parametrize(
    ("field", "names"),
    [("kind", KINDS), ("year", ("200", "1990")), ("speaker", ("s0", "s1", "s2"))],
)
def test_labels_are_named(tmp_path, field, names):
    prepared = data.prepare(config(label_field=field, rows="padded", length=48), tmp_path)
    rows = prepared.splits["validation"]
    assert prepared.label_names == names
    expected = {
        "kind": lambda i: KINDS[i % 2],
        "year": lambda i: str([1990, 200][i % 2]),
        "speaker": lambda i: f"s{i % 3}",
    }[field]
    for tokens, label in zip(rows.tokens, rows.labels, strict=True):
        number = int(data.decode(prepared.tokenizer, tokens).split()[2].rstrip(","))
        assert names[label] == expected(number)


def test_a_label_without_a_name_is_refused(tmp_path, stored):
    """Else it would be read as another class, or as none."""
    (names,) = stored.glob("sayings/*/kind.labels.txt")
    before = names.read_text()
    try:
        names.write_text(KINDS[0] + "\n")
        with pytest.raises(ValueError, match="a document has label 1, accepted are 0 to 0"):
            data.prepare(config(label_field="kind"), tmp_path)
    finally:
        names.write_text(before)


def test_a_feature_may_be_the_prompt(tmp_path):
    asked = config(prompt_field="speaker", rows="padded", length=48)
    prepared = data.prepare(asked, tmp_path)
    rows = prepared.splits["validation"]
    for tokens, size, prompt in zip(rows.tokens, rows.sizes, rows.prompts, strict=True):
        speaker = data.decode(prepared.tokenizer, tokens[:prompt]).replace(" ", "")
        number = int(data.decode(prepared.tokenizer, tokens[prompt:size]).split()[2].rstrip(","))
        assert speaker == f"s{number % 3}"


@pytest.mark.parametrize("name", ["sayings", "sayings:1.2.0", "sayings/1.2.0"])
def test_version_may_be_named(name):
    assert "1.2.0" in open_tfds(name, text_field="text", label_field="").license


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"source": "books"},
            r"^source 'books' is none of wikipedia_summaries, .*text_files, and is no dataset "
            r"prepared as ArrayRecord .* tfds build books --file_format=array_record$",
        ),
        ({"source": "sayings:9.9"}, r"^source 'sayings:9\.9' is none .* tfds build sayings --"),
        ({"text_field": "body"}, r"^text_field 'body' is no field of sayings: it has kind, sp"),
        ({"text_field": "kind"}, r"^text_field 'kind' of sayings must be text, it is ClassLabel"),
        ({"text_field": "words"}, r"^text_field 'words' of sayings must be text, it is Sequence"),
        (
            {"prompt_field": "kind", "rows": "padded"},
            r"^prompt_field 'kind' of sayings must be text, it is ClassLabel",
        ),
        ({"label_field": "words"}, r"^label_field 'words' of sayings must be a ClassLabel, text"),
        ({"label_field": "body"}, r"^label_field 'body' is no field of sayings"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        data.prepare(config(**changes), tmp_path)
    assert "\n" not in str(error.value)


def test_other_storage_is_refused(tmp_path, stored, monkeypatch):
    folder = tmp_path / "sayings" / "1.2.0"
    folder.mkdir(parents=True)
    described = (stored / "sayings" / "1.2.0" / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(described.replace("array_record", "tfrecord"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ValueError, match=f"prepared as ArrayRecord in {tmp_path}"):
        data.prepare(config(), tmp_path / "cache")


def test_tensorflow_is_never_imported_and_its_datasets_only_to_read(tmp_path):
    data.prepare(config(), tmp_path)
    code = f"""
import sys
from mdlm_jax import data
for length in (16, 8):
    data.prepare(data.Config(source="sayings", vocab_size=200, length=length), {str(tmp_path)!r})
    print(length, *{{"tensorflow", "tensorflow_datasets"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["16", "8", "tensorflow_datasets"]


def test_parts_are_the_examples_and_can_be_pickled(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds_datasets, "_PART", 128)
    corpus = open_tfds("sayings", text_field="text", label_field="kind")
    documents = corpus.read(tmp_path)["train"]
    parts = pickle.loads(pickle.dumps(documents.parts()))
    assert len(parts) == 3
    assert [each for part in parts for each in part] == list(documents)
    assert [part.first for part in parts] == [0, 128, 256]  # as messages number them


@pytest.mark.parametrize("field", ["text", "speaker", "kind"])
def test_bytes_that_are_no_text_are_named_with_their_example(field):
    examples = [{"text": b"one", "speaker": b"s", "kind": b"k"} for _ in range(3)]
    examples[2] = {**examples[2], field: b"caf\xe9"}
    documents = tfds_datasets._Documents(
        examples, "sayings, train", "text", "kind", "speaker", True
    )
    with pytest.raises(
        ValueError, match=rf"^sayings, train, example 2: '{field}' is not UTF-8: byte 3"
    ):
        list(documents)
