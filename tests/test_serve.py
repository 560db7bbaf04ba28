"""`python -m mdlm_jax.serve` as a user runs it: what it refuses, and how it ends."""

import re
import signal
import socket
import subprocess
import threading

import exported
import httpx
import pytest
from command_runs import command, run

from benchmarks import policy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    exported.write(folder / "run", kind="bpe", vocab_size=300, length=32)
    (folder / "keys").write_text("# none\n")
    bands = {each: f"[{each}]\nupper = 0.9\nlower = 0.8\n" for each in ("queue_age_s", "memory")}
    (folder / "policy.toml").write_text(bands["queue_age_s"])
    (folder / "small.toml").write_text(bands["queue_age_s"] + '[[stage]]\nmodel = "small"\n')
    (folder / "memory.toml").write_text(bands["memory"] + "[[stage]]\nsteps = 2\n")
    return folder


def test_what_cannot_be_served_is_one_line(folder):
    here = f"--workdir={folder}/run"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = f"--port={taken.getsockname()[1]}"
        for told, flags in {
            "give one of --workdir, --checkpoint and --model": [],
            "give one of --workdir": [here, "--checkpoint=x"],
            "holds no key: one a line is read": [here, f"--keys={folder}/keys"],
            "No such file or directory": [here, f"--keys={folder}/nothing"],
            "--lengths must be whole numbers, such as 64,128, not 'long'": [here, "--lengths=long"],
            "length must be from 1 to 32, the model's rows, not 64": [here, "--lengths=64"],
            "strategy 'fast' must be one of": [here, "--strategies=fast"],
            "it is factor(value)": [here, "--strategies=exact_count, factor"],
            "policy.toml: no stage: begin each": [here, f"--policy={folder}/policy.toml"],
            "model 'small' is not served: there are run": [here, f"--policy={folder}/small.toml"],
            "this device does not tell how much": [here, f"--policy={folder}/memory.toml"],
            "--canary: 'none.txt' matches no file": [here, "--canary=none.txt"],
            "Address already in use": [here, port],
            "--rows=8 of a request could never wait": [here, "--rows=8", "--queue=4"],
            "no folder at": [f"--workdir={folder}/nothing"],
        }.items():
            done = run("serve", *flags, code=2)
            (line,) = done.stderr.splitlines()
            assert line.startswith("error: ") and told in line, line
            assert done.stdout == ""


@pytest.fixture
def process(folder):
    flags = (f"--workdir={folder}/run", "--port=0", "--slots=2", "--drain=20")
    process = subprocess.Popen(
        command("serve", [*flags, "--strategies=exact_count, remask(cap, 0.1)"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def begun(process, steps):
    """A stream that has begun: what came, and the thread that reads on."""
    address = re.fullmatch(r"run is served at (\S+)\n", process.stdout.readline())[1]
    came, begins = [], threading.Event()
    body = {"model": "run", "prompt": "the {mask:20}", "strategy": "remask(cap, 0.1)"}

    def read():
        try:
            with httpx.stream(
                "POST",
                f"{address}/v1/completions",
                json={**body, "steps": steps, "stream": True},
                timeout=60,
            ) as stream:
                for line in stream.iter_lines():
                    came.append(line)
                    begins.set()
        except httpx.HTTPError as error:
            came.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert begins.wait(60)
    return address, came, thread


def test_a_signal_ends_it_when_what_was_begun_is_written(process):
    address, came, thread = begun(process, steps=100)
    process.send_signal(signal.SIGTERM)
    thread.join(60)
    assert [line for line in came if line][-1] == "data: [DONE]"
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in told, told
    assert "path=/v1/completions status=200" in told
    (asked,) = policy.recorded(told.splitlines(keepends=True))  # `benchmarks.policy` reads the log
    assert asked.rows == 1 and 0 < asked.evaluations <= 100 and asked.seconds > 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(process, sent):
    _, came, thread = begun(process, steps=100_000)
    process.send_signal(sent)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.send_signal(sent)
    assert process.wait(10) == 1
    thread.join(60)
    assert "data: [DONE]" not in came
