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
        flags = ("--users", "1", "4", "--rude=3", "--seconds=3", "--every=1.5", "--steps", "2", "5")
        done, lines = load(running.address, f"--length={LENGTH}", *flags)
        ended = running.engine.stats().ended
    assert done.returncode == 0, done.stderr
    assert [line["users"] for line in lines] == [1, 1, 4, 4]
    for line in lines:
        assert line["requests"] > 3 and line["wrong"] == line["compilations"] == 0
        assert 0 < line["first_p50_ms"] <= line["p50_ms"] <= line["p99_ms"]
        assert line["memory_mb"] > 50 and not line["errors"]
        assert set(line["rude"]) <= {
            "left", "hurried, 200", "hurried, 504", "hurried, 429", "erred, 400",
        }  # fmt: skip
    assert any(line["rude"] for line in lines) and ended["cancelled"] + ended["deadline"] > 0


class Erring(http.server.BaseHTTPRequestHandler):
    """Streams other texts than it told before, and never frees a slot."""

    def do_GET(self):
        models = json.dumps({"data": [{"id": "m"}]})
        counts = "".join(
            f"# TYPE {name} gauge\n{name} 1\n"
            for name in ("mdlm_slots_active", "mdlm_queue_rows", "process_resident_memory_bytes")
        )
        self.answer(models if self.path == "/v1/models" else counts)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = {"choices": [{"text": "other" if body.get("stream") else "text"}]}
        self.answer(f"data: {json.dumps(text)}\n\n" if body.get("stream") else json.dumps(text))

    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_another_text_and_a_slot_in_use_are_found():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Erring)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        done, (line,) = load(address, "--users", "2", "--seconds=1", "--patience=0.5")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == 1 and line["wrong"] == line["requests"] > 0
    assert "slots stayed in use after 2 users" in done.stderr
