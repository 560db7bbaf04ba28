"""The guide to serving, from its first block to its last, beside the servers that it starts."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import exported
import pytest
import tiny_server

pytestmark = pytest.mark.slow  # a server starts
PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
REPLICAS = PAGE.index("## Two replicas")


def blocks(text):
    return re.findall(r"^```(bash|python|toml)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs").mkdir()
    pairs = {"config": {"prompt_field": "prompt"}}
    for name, card in (("quickstart", None), ("answers", pairs)):
        exported.write(tmp_path / "runs" / name, card, vocab_size=140, length=48)
    return tmp_path


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Terminals:
    """What a reader has: a folder, terminals in which servers run, and ports that are free here."""

    def __init__(self, folder):
        self.folder, self.servers = folder, []
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path}
        self.ports = {port: str(free_port()) for port in ("8000", "8001", "8010", "8011", "8080")}

    def here(self, block):
        return re.sub(r"\b80[018][01]\b", lambda at: self.ports[at[0]], block)

    def serve(self, block, flags=""):
        """Starts a server and waits until it says that it serves."""
        server = subprocess.Popen(
            ["bash", "-c", f"exec {self.here(block).strip()} {flags}"],
            cwd=self.folder, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.servers.append(server)
        line = server.stdout.readline()
        assert re.search(r" (is|are) served at http://127.0.0.1:\d+\n", line), server.stderr.read()
        return server

    def type(self, block):
        done = subprocess.run(
            ["bash", "-ec", self.here(block)],
            cwd=self.folder, env=self.environment, text=True, capture_output=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0 and "error" not in done.stdout, done
        return done.stdout

    def end(self, server):
        """By SIGTERM; its log."""
        server.send_signal(signal.SIGTERM)
        told = server.communicate(timeout=60)[1]
        assert server.returncode == 0, told
        return told


@pytest.fixture
def terminals(folder):
    terminals = Terminals(folder)
    yield terminals
    for server in terminals.servers:
        server.kill()
        server.communicate()


def test_the_guide_works_as_it_stands(terminals, capsys):
    """But for the ports, which may be taken here."""
    names, told = {}, []
    for language, block in blocks(PAGE[:REPLICAS]):
        if "mdlm_jax.serve " in block:
            terminals.serve(block, "--slots=2")
        elif language == "bash":
            told.append(terminals.type(block))
        else:
            exec(compile(terminals.here(block), "serving.md", "exec"), names)
    logs = [terminals.end(server) for server in terminals.servers]
    listed, answered, streamed = told
    assert '"role":"assistant"' in answered
    assert '"id":"quickstart"' in listed and '"text":"the city of' in listed
    assert "event: canvas" in streamed and streamed.endswith("data: [DONE]\n\n")
    shown = capsys.readouterr().out
    assert len(names["answer"].choices) == 3 and "network evaluations" in shown
    assert names["gap"].choices[0].text in shown
    assert "path=/v1/alternatives status=200" in logs[0]
    assert "river" not in logs[0] and "mill" not in logs[1]


def test_two_replicas_a_promotion_and_a_rollback(terminals):
    """As the guide tells it; its reader asks again until the servers have followed."""
    pytest.importorskip("mlflow")
    register, one, two, regions, gateway, ask, promote, rollback = (
        block for _, block in blocks(PAGE[REPLICAS:])
    )
    flags = "--slots=2 --strategies=exact_count"
    terminals.type(register)
    first = terminals.serve(one, flags)
    terminals.serve(two, flags)
    (terminals.folder / "regions.toml").write_text(terminals.here(regions))
    terminals.serve(gateway)

    def answered():
        return json.loads(terminals.type(ask))

    def follows(version):
        tiny_server.wait_until(lambda: answered()["model"] == f"quickstart/{version}", 60)
        return answered()

    before = answered()
    assert before["model"] == "quickstart/1"
    assert "lies on the river" in before["choices"][0]["text"]
    terminals.end(first)
    assert answered()["choices"] == before["choices"]
    terminals.serve(one, flags)

    assert '"choices"' in terminals.type(promote)
    promoted = follows(2)
    assert promoted["usage"]["evaluations"] == 4 < before["usage"]["evaluations"]
    assert '"choices"' in terminals.type(rollback)
    assert follows(1)["choices"] == before["choices"]


def test_the_guide_names_every_field_and_flag():
    pytest.importorskip("fastapi")
    from mdlm_jax.serving.api import schemas

    neutral = {"frequency_penalty", "presence_penalty", "best_of", "top_logprobs"}
    neutral |= {"response_format"}
    fields = {*schemas.Completion.model_fields, *schemas.Chat.model_fields} - neutral
    rows = "".join(line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `"))
    assert [field for field in sorted(fields) if f"`{field}`" not in rows] == []
    source = (Path(__file__).parents[1] / "mdlm_jax" / "serve.py").read_text()
    flags = re.findall(r'(?:define_path|DEFINE_\w+)\(\s*"(\w+)"', source)
    elsewhere = {"weights", "follow"}  # as of all commands; versions.md
    assert [name for name in flags if name not in elsewhere and f"`--{name}`" not in PAGE] == []
