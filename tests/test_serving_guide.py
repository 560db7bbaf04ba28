"""The guide to serving, from its first block to its last, beside the server that it starts."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import exported
import pytest

pytestmark = pytest.mark.slow  # a server starts
PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


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


def test_the_guide_works_as_it_stands(folder, capsys, monkeypatch):
    """But for the ports, which may be taken here."""
    ports, names = {port: str(free_port()) for port in ("8000", "8001")}, {}
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    servers, told = [], []
    try:
        for language, block in BLOCKS:
            block = re.sub(r"800[01]\b", lambda at: ports[at[0]], block)
            if "mdlm_jax.serve " in block:
                server = subprocess.Popen(
                    ["bash", "-c", f"exec {block} --slots=2"],
                    cwd=folder, env=environment, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                )  # fmt: skip
                servers.append(server)
                assert re.fullmatch(
                    r"\w+ is served at http://127.0.0.1:\d+\n", server.stdout.readline()
                )
            elif language == "bash":
                done = subprocess.run(
                    ["bash", "-ec", block], cwd=folder, text=True, capture_output=True, timeout=120
                )
                assert done.returncode == 0 and "error" not in done.stdout, done
                told.append(done.stdout)
            else:
                exec(compile(block, "serving.md", "exec"), names)
        logs = []
        for server in servers:
            server.send_signal(signal.SIGTERM)
            logs.append(server.communicate(timeout=60)[1])
            assert server.returncode == 0, logs[-1]
    finally:
        for server in servers:
            server.kill()
    listed, answered, streamed = told
    assert '"role":"assistant"' in answered
    assert '"id":"quickstart"' in listed and '"text":"the city of' in listed
    assert "event: canvas" in streamed and streamed.endswith("data: [DONE]\n\n")
    shown = capsys.readouterr().out
    assert len(names["answer"].choices) == 3 and "network evaluations" in shown
    assert names["gap"].choices[0].text in shown
    assert "path=/v1/alternatives status=200" in logs[0]
    assert "river" not in logs[0] and "mill" not in logs[1]


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
