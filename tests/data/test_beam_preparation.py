"""Apache Beam's pipeline gives the bytes that one process gives.

Skipped where Beam is not installed: `.ci/run` installs it in an environment of its own.
"""

import dataclasses
import json

import fsspec
import pytest
import sayings
from command_runs import TINY, run, write_text

pytest.importorskip("apache_beam")

from mdlm_jax import data
from mdlm_jax.data import beam_preparation
from mdlm_jax.data.corpora import tfds_datasets
from mdlm_jax.data.tokens import encoding

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(beam_preparation, "_BATCH", 300)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Files of unlike sizes, whose labels come by name and in another order in each."""
    folder = tmp_path_factory.mktemp("records")
    for number, count in enumerate([60, 1, 25]):
        lines = (
            json.dumps(
                {
                    "text": f"the answer to {line} in file {number} is {line * 7 % 13}",
                    "question": f"what is {line}?",
                    "kind": ["b", "10", "a", "9"][(line + number) % 4],
                }
            )
            for line in range(count)
        )
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    return str(folder / "*.jsonl")


PACKED = {"label_field": "kind"}
PAIRS = {"prompt_field": "question", "rows": "padded"}
CONFIGS = {
    "labels": PACKED,
    "pairs": PAIRS,
    "position": {"split_by": "position"},
    "padded": {"rows": "padded", "tokenizer": "characters", "vocab_size": 60},
}


def files_config(records, **changes):
    asked = {"tokenizer": "bpe", "vocab_size": 300, "length": 24, "held_out": 0.2, **changes}
    return data.Config(source="text_files", files=records, **asked)


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_bytes(records, tmp_path, name):
    config = files_config(records, **CONFIGS[name])
    plain = data.prepare(config, tmp_path / "plain")
    encode = beam_preparation.encoder("DirectRunner")
    beam = data.prepare(config, tmp_path / "beam", encode=encode)
    assert contents(beam.path) == contents(plain.path)
    assert beam.path.name == plain.path.name  # found again, whoever made it
    assert left(tmp_path / "beam") == ["lock", plain.path.name]
    assert data.prepare(config, tmp_path / "plain", encode=None).path == plain.path


def test_a_corpus_of_ones_own_and_batches_in_a_bucket(tiny_config, tmp_path):
    config = dataclasses.replace(tiny_config, rows="padded")
    plain = data.prepare(config, tmp_path / "plain")
    encode = beam_preparation.encoder("DirectRunner", ["temp_location=memory://temp/here/"])
    beam = data.prepare(config, tmp_path / "beam", encode=encode)
    assert contents(beam.path) == contents(plain.path)
    assert not fsspec.filesystem("memory").find("temp")


def test_a_dataset_of_tfds_by_ranges_of_examples(tmp_path, monkeypatch):
    sayings.store(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds_datasets, "_PART", 100)
    config = data.Config(source="sayings", label_field="speaker", vocab_size=200, length=16)
    plain, beam = (
        data.prepare(config, tmp_path / name, encode=encode)
        for name, encode in (
            ("plain", encoding.encode_splits),
            ("beam", beam_preparation.encoder("DirectRunner")),
        )
    )
    assert contents(beam.path) == contents(plain.path)


def test_commands_with_processes_of_beam(tmp_path):
    text = write_text(tmp_path / "text.txt")
    told = []
    for name, flags in {
        "plain": [],
        "beam": [
            "--runner=DirectRunner",
            "--beam_options=direct_num_workers=2,direct_running_mode=multi_processing",
        ],
    }.items():
        env = {"MDLM_JAX_CACHE": str(tmp_path / name)}
        done = run("prepare", *TINY, *flags, text=text, env=env, fork=False)
        told.append(done.stdout.replace(str(tmp_path / name), ""))
    assert told[0] == told[1]
    plain, beam = (next((tmp_path / name).glob("text_files-*")) for name in ("plain", "beam"))
    assert contents(beam) == contents(plain)


def test_a_line_that_is_wrong_is_told_as_without_beam(records, tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    for number in range(3):
        lines = [json.dumps({"text": f"line {line} of {number}"}) for line in range(30)]
        if number:
            lines[17] = '{"text": torn}'
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    given = tmp_path / "tokenizer.json"
    given.write_bytes(
        (data.prepare(files_config(records), tmp_path / "a").path / "tokenizer.json").read_bytes()
    )
    config = files_config(str(folder / "*.jsonl"), tokenizer=str(given))
    told = []
    for encode in (encoding.encode_splits, beam_preparation.encoder("DirectRunner")):
        with pytest.raises(ValueError, match=r"1\.jsonl, line 18 is not JSON") as error:
            data.prepare(config, tmp_path / "b", encode=encode)
        told.append(str(error.value))
        assert left(tmp_path / "b") == ["lock"]
    assert told[0] == told[1]


def test_a_pipeline_that_fails_leaves_nothing(tiny_config, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise PermissionError("no room on a worker")

    monkeypatch.setattr(encoding, "write_tokens", fails)
    told = r"^the Beam pipeline failed: .*no room on a worker \[while running 'encode'\]$"
    with pytest.raises(OSError, match=told):
        data.prepare(tiny_config, tmp_path, encode=beam_preparation.encoder("DirectRunner"))
    assert left(tmp_path) == ["lock"]


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        (
            "Nonsense",
            [],
            r"^Unexpected pipeline runner: Nonsense\. Valid values are Data",
        ),
        ("DirectRunner", ["nonsense=3"], "^Beam has no option nonsense$"),
        ("DirectRunner", ["direct_num_workers=x"], "^argument --direct_num_workers: invalid int"),
        ("FlinkRunner", [], "^FlinkRunner needs the option temp_location"),
        ("DataflowRunner", ["project=my-project"], "Missing required option: region"),
    ],
)
def test_wrong_options_are_told_in_one_line(runner, options, message):
    with pytest.raises(ValueError, match=message) as error:
        beam_preparation.encoder(runner, options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "lm1b"}, "source 'lm1b' lies on this machine"),
        ({"source": "text_files", "files": "gs://b/*.txt, a.txt"}, "^files: .* 'a.txt' lies on"),
    ],
)
def test_dataflow_reads_buckets_alone(change, message):
    config = data.Config(**change)
    with pytest.raises(ValueError, match=message):
        beam_preparation.check_reachable(config, "DataflowRunner")
    beam_preparation.check_reachable(config, "DirectRunner")
