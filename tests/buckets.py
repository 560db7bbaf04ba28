"""A server that answers as Google Cloud Storage does."""

import contextlib
import socket
import subprocess
import sys
import time

import pytest


@contextlib.contextmanager
def serve_bucket(folder):
    """Serves the empty `gs://bucket`; yields the environment in which clients find it.

    It does not know preconditions: of two that create one object at once, both are told they did.
    """
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    served = ["--host=localhost", f"--port={port}", "--in-memory", "--default-bucket=bucket"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "gcp_storage_emulator", "start", *served],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    address = f"http://localhost:{port}"
    while "All services started" not in (folder / "server.log").read_text():
        assert server.poll() is None
        time.sleep(0.1)
    yield {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
    server.terminate()
    server.wait()
