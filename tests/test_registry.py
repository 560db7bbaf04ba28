import re

import exported
import pytest
from command_runs import run, write_text

from mdlm_jax.serving.versions import registry
from mdlm_jax.writing.requests import Options


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("run") / "run")


@pytest.mark.slow
def test_a_version_from_registration_to_rollback(run_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def printed(*words):
        done = run("registry", *words)
        assert not done.stderr
        return done.stdout

    tiny = "--name=tiny"
    registered = printed(
        "register", f"--workdir={run_folder}", tiny, "--steps=64", "--strategy=threshold(0.9)",
        f"--canary={write_text(tmp_path / 'canary.txt')}",
    )  # fmt: skip
    told, measured = registered.splitlines()
    assert told == "registered: models:/tiny/1, threshold(0.9), steps 64, float32"
    assert re.fullmatch(
        r"canary, nats a masked token by mask rate: ([\d.]+ at [\d.]+(, |$)){8}", measured
    )
    assert (tmp_path / "mlflow.db").is_file() and len([*(tmp_path / "mlruns").iterdir()]) == 1
    client = registry.connect()  # the file that the command made here
    registry.register(client, "tiny", str(run_folder), Options(steps=1), dtype="bfloat16")
    registry.promote(client, "tiny", 1)
    registry.promote(client, "tiny", 1, "challenger")
    told = "tiny@champion is version 2, it was 1\n"
    assert printed("promote", tiny, "--version=2") == told
    told = "requests for tiny: champion 75.0%, challenger 25.0%\n"
    assert printed("split", tiny, "--shares=champion=3,challenger=1") == told
    heads, first, second, traffic = (line.split() for line in printed("list").splitlines())
    assert heads == ["version", "aliases", "sampler", "dtype", "weights", "digest", "registered"]
    assert first[:6] == ["tiny/1", "challenger", "threshold(0.9),", "steps", "64", "float32"]
    assert second[:6] == ["tiny/2", "champion", "exact_count,", "steps", "1", "bfloat16"]
    assert traffic == ["requests", "for", "tiny:", "champion", "3,", "challenger", "1"]
    assert printed("rollback", tiny) == "tiny@champion is version 1 again, it was 2\n"


@pytest.mark.slow
def test_what_mlflow_refuses_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (line,) = run("registry", "rollback", "--name=tiny", code=2).stderr.splitlines()
    assert line == "error: MLflow: Registered Model with name=tiny not found"


@pytest.mark.parametrize(
    "words, told",
    [
        ([], "give one of register, list, promote, rollback, split, not nothing"),
        (["list", "promote"], "not list promote"),
        (["promot"], "unknown action 'promot' (do you mean promote?)"),
        (["register", "--name=a"], "register needs --workdir, or --checkpoint"),
        (["register", "--name=a", "--workdir=b", "--checkpoint=c"], "exclude each other"),
        (["register", "--workdir=a"], "register needs --name"),
        (["promote", "--name=a"], "promote needs --version"),
        (["split", "--name=a"], "split needs --shares"),
        (["list", "--steps=4"], "--steps is not for list"),
        (["rollback", "--name=a", "--version=1"], "--version is not for rollback"),
        (["register", "--name=a b", "--workdir=none"], "name must be letters, digits, dots"),
    ],
)
def test_bad_input_is_one_line(words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (line,) = run("registry", *words, code=2).stderr.splitlines()
    assert line.startswith("error: ") and told in line
    assert not [*tmp_path.iterdir()]
