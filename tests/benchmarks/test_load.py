"""The users of `benchmarks.load`: a server serves them, and one that errs is found out."""

import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import exported
import pytest
import tiny_server

import mdlm_jax

ROOT = Path(__file__).parents[2]
LENGTH = 48


def load(address, *flags):
    # Locust changes sockets and threads: a process of its own.
    command = [sys.executable, "-m", "benchmarks.load", f"--host={address}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    return done, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_users_get_their_texts_and_rude_ones_leave_nothing(tmp_path):
    written = exported.write(tmp_path / "run", kind="bpe", vocab_size=300, length=LENGTH)
    with tiny_server.running({"tiny": mdlm_jax.load(written)}) as running:
        flags = ("--users", "1", "4", "--rude=3", "--seconds=6", "--every=3", "--steps", "2", "5")
        done, lines = load(running.address, f"--length={LENGTH}", *flags)
        ended = running.engine.stats().ended
    assert done.returncode == 0, done.stderr
    assert {line["users"] for line in lines} == {1, 4}
    for line in lines:
        assert line["wrong"] == line["compilations"] == 0 and not line["errors"]
        assert line["memory_mb"] > 50
        if line["requests"]:
            assert 0 < line["first_p50_ms"] <= line["p50_ms"] <= line["p99_ms"]
        assert set(line["rude"]) <= {
            "left, 200", "left, 429", "hurried, 200", "hurried, 504", "hurried, 429", "erred, 400",
        }  # fmt: skip
    assert any(line["rude"] for line in lines) and ended["cancelled"] + ended["deadline"] > 0


class Erring(http.server.BaseHTTPRequestHandler):
    """Streams other texts than it told before, or breaks streams off, and never frees a slot."""

    def do_GET(self):
        models = json.dumps({"data": [{"id": "m"}]})
        names = ("mdlm_slots_active", "mdlm_queue_rows", "process_resident_memory_bytes")
        gauges = [f"# TYPE {name} gauge\n{name} 1\n" for name in names]
        compiled = "mdlm_compilations_after_readiness"
        counter = f"# TYPE {compiled} counter\n{compiled}_total 0\n"
        self.answer(models if self.path == "/v1/models" else "".join([*gauges, counter]))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not body.get("stream"):
            return self.answer(json.dumps({"choices": [{"text": "text"}]}))
        text = json.dumps({"choices": [{"text": "other"}]})
        return self.answer(f"data: {text}\n\n", broken=self.server.breaks)

    def answer(self, text, broken=False):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text) + broken))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_server_that_is_not_there_is_one_line():
    done, lines = load("http://127.0.0.1:9", "--users", "1")
    assert done.returncode == 1 and not lines
    assert done.stderr.startswith("error: the server does not answer: ")


@pytest.mark.slow
@pytest.mark.parametrize("breaks", [False, True])
def test_what_a_server_does_wrong_is_found(breaks):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Erring)
    server.breaks = breaks
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        done, (line,) = load(address, "--users", "2", "--seconds=1", "--patience=0.5")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == 1 and "slots stayed in use after 2 users" in done.stderr
    assert "broken: {" in done.stderr
    if breaks:
        assert line["requests"] == 0 and sum(line["errors"].values()) > 0
    else:
        assert line["wrong"] == line["requests"] > 0
