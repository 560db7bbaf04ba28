"""`serve --model`: versions of the registry, by commands as a user gives them."""

import re
import signal
import subprocess

import exported
import httpx
import pytest
import tiny_server
from command_runs import command, run, write_text

from mdlm_jax.serving.versions import registry
from mdlm_jax.writing.requests import Options

pytest.importorskip("mlflow")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of a database with two versions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    exported.write(tmp_path / "run", kind="bpe", vocab_size=300, length=32)
    client = registry.connect()
    for steps in (1, 2):
        registry.register(client, "tiny", str(tmp_path / "run"), Options(steps=steps))
    registry.promote(client, "tiny", 1)
    return tmp_path


@pytest.mark.slow
def test_a_server_follows_a_promotion_and_a_rollback(folder):
    flags = ("--model=models:/tiny@champion", "--port=0", "--slots=2", "--follow=0.2")
    flags += (f"--canary={write_text(folder / 'canary.txt')}",)
    process = subprocess.Popen(
        command("serve", [*flags, "--strategies=exact_count"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.fullmatch(r"tiny is served at (\S+)\n", process.stdout.readline())[1]

        def ask(model):
            body = {"model": model, "prompt": "the {mask:4}", "seed": 1}
            return httpx.post(f"{address}/v1/completions", json=body, timeout=60)

        def served():
            return ask("tiny").json()["model"]

        assert served() == "tiny/1"
        first = ask("tiny@champion").json()
        assert first["usage"]["evaluations"] == 1
        run("registry", "promote", "--name=tiny", "--version=2")
        tiny_server.wait_until(lambda: served() == "tiny/2", 60)
        second = ask("tiny/2").json()
        assert second["usage"]["evaluations"] == 2
        assert second["system_fingerprint"] != first["system_fingerprint"]
        assert ask("tiny/1").status_code == 404

        def measured():
            return (
                'mdlm_canary_nats{model="tiny/2",rate="1"}' in httpx.get(f"{address}/metrics").text
            )

        tiny_server.wait_until(measured, 60)
        run("registry", "rollback", "--name=tiny")
        tiny_server.wait_until(lambda: served() == "tiny/1", 60)
        again = ask("tiny").json()
        assert again["choices"] == first["choices"]
        assert again["system_fingerprint"] == first["system_fingerprint"]
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, told
        assert "models:/tiny@champion is version 2" in told
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--model=tiny"], "'tiny' names no version: write models:/name, "),
        (["--model=models:/tiny", "--workdir=a"], "give one of --workdir, --checkpoint and --mod"),
        (["--model=models:/tiny", "--steps=3"], "--steps is not for --model: a version has its"),
        (["--workdir=a", "--follow=3"], "--follow is not for --workdir: it is of --model"),
    ],
)
def test_bad_input_is_one_line(flags, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("serve", *flags, "--port=0", code=2)
    assert done.stderr.startswith(f"error: {told}") and done.stderr.count("\n") == 1
