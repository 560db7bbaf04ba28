"""Failing regions and a gateway before them, as processes that can be killed and stopped."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
QUICK = {"health_every_s": 0.2, "health_timeout_s": 0.5}


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def call(url: str, body: Any = None, timeout: float = 10.0) -> tuple[int, Any]:
    """Status and JSON of a request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


class Process:
    """A server in a process of its own."""

    def __init__(self, arguments: list[str], port: int, ready: str, log: Path | None = None):
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self._arguments, self._ready, self.log = arguments, ready, log
        self.start()

    def start(self) -> None:
        """Starts it, again after `kill`; `await_ready` waits for it."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self._arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("a") if self.log else None,
        )

    def await_ready(self, seconds: float = 60.0) -> None:
        """Waits until it answers that it is ready."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError):
                if call(self.url + self._ready, timeout=1.0)[0] == 200:
                    return
            if self.process.poll() is not None:
                raise RuntimeError(f"{self._arguments} ended with {self.process.returncode}")
            time.sleep(0.02)
        raise TimeoutError(f"{self._arguments} is not ready")

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: it hangs, its connections stay."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)


class FailingRegion(Process):
    """`benchmarks.failing_region`."""

    def __init__(self, fingerprint: str = "fp_1", delay: float = 0.005):
        port = free_port()
        flags = [f"--port={port}", f"--fingerprint={fingerprint}", f"--delay={delay}"]
        super().__init__(["benchmarks.failing_region", *flags], port, "/readyz")

    def control(self, **words: Any) -> None:
        """Tells it how to fail; nothing mends it."""
        assert call(self.url + "/control", words)[0] == 200

    def stats(self) -> dict[str, Any]:
        """What it was asked, and how many requests run."""
        return call(self.url + "/stats")[1]


class Server(Process):
    """`mdlm_jax.serve` of a run."""

    def __init__(self, workdir: str, *flags: str, log: Path | None = None):
        port = free_port()
        given = [f"--workdir={workdir}", f"--port={port}", *flags]
        super().__init__(["mdlm_jax.serve", *given], port, "/readyz", log)


class Wire(Process):
    """`benchmarks.failing_wire` before a server."""

    def __init__(self, target: Process, ready: str = "/readyz"):
        port, self._control = free_port(), free_port()
        flags = [f"--port={port}", f"--target={target.port}", f"--control={self._control}"]
        super().__init__(["benchmarks.failing_wire", *flags], port, ready)

    def fail(self, mode: str, times: int = 1) -> None:
        """Fails the next answers."""
        with socket.create_connection(("127.0.0.1", self._control), timeout=10) as control:
            control.sendall(json.dumps({"mode": mode, "times": times}).encode() + b"\n")
            assert control.recv(10) == b"ok\n"


class Gateway(Process):
    """`mdlm_jax.gateway` before regions, by names and urls."""

    def __init__(
        self,
        folder: Path,
        regions: dict[str, str],
        *flags: str,
        gateway: dict[str, Any] | None = None,
        every_region: dict[str, Any] | None = None,
        log: Path | None = None,
    ):
        port = free_port()
        path = folder / f"regions_{port}.toml"
        tables = [
            _table("[gateway]", gateway or {}),
            _table("[every_region]", {**QUICK, **(every_region or {})}),
        ]
        for name, url in regions.items():
            tables.append(_table("[[region]]", {"name": name, "url": url}))
        path.write_text("\n".join(tables))
        super().__init__(
            ["mdlm_jax.gateway", f"--regions={path}", f"--port={port}", *flags],
            port,
            "/readyz",
            log,
        )


@contextlib.contextmanager
def running(*processes: Process) -> Iterator[None]:
    """Waits until all are ready, and ends them."""
    try:
        for process in processes:
            process.await_ready()
        yield
    finally:
        for process in processes:
            process.kill()


def _table(name: str, values: dict[str, Any]) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join([name, *lines, ""])
