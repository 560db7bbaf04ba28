"""launch/local.sh, with a `python` that ends as told."""

import os
import shutil
import signal
import subprocess

import pytest

RUNS = "echo $$ >ready$PROCESS_ID; while true; do /bin/sleep 0.05; done"
# Goes on for a while after it was told, as who saves does, and would notice to be told twice.
STOPS = """
trap 'echo told >>told$PROCESS_ID' TERM
echo $$ >ready$PROCESS_ID
while ! [ -e told$PROCESS_ID ]; do /bin/sleep 0.05; done
/bin/sleep 0.5
exit 75
"""
WHEN_READY = "while ! [ -s ready0 ]; do /bin/sleep 0.05; done"


@pytest.fixture
def fakes(fakes):
    fakes.make("python")
    return fakes


def local(fakes, *options, code=0, env=None, start=False, flags=()):
    arguments = ("--pause", "0", *options, "--", "--config=a b", "--workdir=runs/x", *flags)
    begin = fakes.start if start else fakes.run
    return begin("local.sh", *arguments, env=env, **({} if start else {"code": code}))


def tries(fakes, processes=2):
    return [len(fakes.calls(f"python{i}")) for i in range(processes)]


def test_every_process_is_told_of_the_others(fakes):
    for i in range(3):
        fakes.act(f"python{i}", f"echo from {i}; echo worse >&2")
    done = local(fakes, "--processes", "3")
    addresses = set()
    for i in range(3):
        (call,) = fakes.calls(f"python{i}")
        assert call.args == ["-m", "mdlm_jax.train", "--config=a b", "--workdir=runs/x"]
        assert (call.env["PROCESS_ID"], call.env["NUM_PROCESSES"]) == (str(i), "3")
        assert "CUDA_VISIBLE_DEVICES" not in call.env
        addresses.add(call.env["COORDINATOR_ADDRESS"])
        log = (fakes.folder / f"logs/runs/x/process-{i}.log").read_text()
        assert f"process {i} of 3\nfrom {i}\nworse\n" in log
    (address,) = addresses
    host, port = address.split(":")
    assert host == "127.0.0.1" and 1024 < int(port) < 65536
    assert done.stdout == "from 0\nworse\n"


def test_a_process_alone_is_told_nothing(fakes):
    local(fakes, env={"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cuda"})
    (call,) = fakes.calls("python")
    assert not {"COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"} & call.env.keys()
    assert call.env["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize("end", ["exit 1", "exit 134", "kill -KILL $$"])
def test_after_a_crash_the_whole_job_is_started_again(fakes, end):
    fakes.act("python0", STOPS)
    fakes.act("python1", f"echo why; {end}")
    done = local(fakes, "--processes", "2")
    assert tries(fakes) == [2, 2]
    assert "restart 1 of 10 in 0 s" in done.stderr
    assert "process 1 ended with code" in done.stderr and "    why\n" in done.stderr


def test_a_job_that_stopped_by_itself_is_started_again(fakes):
    """A process that still saves is left to it."""
    fakes.act("python0", "while ! [ -e saved1 ]; do /bin/sleep 0.05; done; /bin/sleep 0.5; exit 75")
    fakes.act("python1", "touch saved1; exit 75")
    done = local(fakes, "--processes", "2")
    assert tries(fakes) == [2, 2] and "the job ended with code 75: restart 1" in done.stderr


@pytest.mark.parametrize("code", [0, 2, 76])
def test_done_bad_input_and_updates_that_are_not_finite_are_final(fakes, code):
    fakes.act("python0", f"exit {code}")
    fakes.act("python1", f"exit {code}")
    done = local(fakes, "--processes", "2", code=code)
    assert tries(fakes) == [1, 1] and "restart" not in done.stderr


def test_it_ends_at_once_where_the_package_cannot_be_imported(fakes):
    fakes.act("python", *["exit 1"] * 3)
    fakes.act_at_import("echo a traceback >&2; echo No module named jax >&2; exit 1")
    done = local(fakes, code=2)
    told = f"launch: {fakes.folder}/bin/python cannot import mdlm_jax (No module named jax): not"
    assert told in done.stderr and len(fakes.calls("python")) == 1


def test_the_repositorys_environment_is_activated_where_none_is(fakes):
    shutil.copytree(fakes.root / "launch", fakes.folder / "launch")
    activate = fakes.folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text("export ACTIVATED=yes\n")
    for active, told in (("", "yes"), ("another", None)):
        done = subprocess.run(
            ["bash", "launch/local.sh", "--", "--workdir=runs/x"],
            cwd=fakes.folder,
            env={
                "PATH": f"{fakes.folder / 'bin'}:{os.environ['PATH']}",
                "JAX_PLATFORMS": "cpu",
                "VIRTUAL_ENV": active,
            },
        )
        assert done.returncode == 0
        assert fakes.calls("python")[-1].env.get("ACTIVATED") == told


def test_the_first_failure_decides(fakes):
    """What the others say when a process is gone may look like bad input."""
    fakes.act("python0", f"trap 'exit 2' TERM; {RUNS}")
    fakes.act("python1", f"{WHEN_READY}; exit 134")
    local(fakes, "--processes", "2")
    assert tries(fakes) == [2, 2]

    fakes.act("python0", "", "", f"trap 'exit 134' TERM; {RUNS}")
    fakes.act("python1", "", "", f"{WHEN_READY}; exit 2")
    (fakes.folder / "ready0").unlink()
    local(fakes, "--processes", "2", code=2)
    assert tries(fakes) == [3, 3]


def test_restarts_have_an_end(fakes):
    fakes.act("python", *["exit 3"] * 9)
    done = local(fakes, "--restarts", "2", code=3)
    assert len(fakes.calls("python")) == 3
    assert "after 2 restarts: giving up" in done.stderr


def test_it_pauses_before_a_restart(fakes):
    fakes.make("sleep")
    fakes.act("python", "exit 3")
    local(fakes, "--pause", "47")
    assert [call.args for call in fakes.calls("sleep")].count(["1"]) == 47


def test_who_does_not_end_is_killed(fakes):
    fakes.act("python0", f"trap '' TERM; {RUNS}")
    fakes.act("python1", f"{WHEN_READY}; exit 3")
    local(fakes, "--processes", "2", "--grace", "1", "--restarts", "0", code=3)
    assert not alive(fakes.folder / "ready0")


def test_what_a_crash_leaves_behind_is_ended(fakes):
    fakes.act("python", "(trap '' TERM; exec /bin/sleep 300) & echo $! >pid; exit 3")
    local(fakes, "--restarts", "0", code=3)
    fakes.wait_for(lambda: not alive(fakes.folder / "pid"))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_job(fakes, sent):
    for i in range(2):
        fakes.act(f"python{i}", STOPS)
    process = local(fakes, "--processes", "2", start=True)
    fakes.wait_for(lambda: all((fakes.folder / f"ready{i}").exists() for i in range(2)))
    os.killpg(process.pid, sent)  # as the terminal does: to the launcher and all of its group
    done = fakes.finish(process, 75)
    assert tries(fakes) == [1, 1] and "restart" not in done.stderr
    assert [(fakes.folder / f"told{i}").read_text() for i in range(2)] == ["told\n"] * 2


def test_a_stop_before_there_is_anything_to_save(fakes):
    fakes.act("python", "exec /bin/sleep 60")
    process = local(fakes, start=True)
    fakes.wait_for(lambda: fakes.calls("python"))
    process.terminate()
    fakes.finish(process, 75)


def test_a_crash_while_stopping_is_told_and_final(fakes):
    fakes.act("python", f"trap 'exit 1' TERM; {RUNS}")
    process = local(fakes, start=True)
    fakes.wait_for((fakes.folder / "ready").exists)
    process.terminate()
    assert "the job ended with code 1" in fakes.finish(process, 1).stderr
    assert len(fakes.calls("python")) == 1


def test_a_signal_ends_the_pause(fakes):
    fakes.act("python", "exit 3")
    process = local(fakes, "--pause", "600", start=True)
    while "in 600 s" not in process.stderr.readline():
        pass
    process.terminate()
    fakes.finish(process, 75)
    assert len(fakes.calls("python")) == 1


def test_a_second_signal_ends_it_at_once(fakes):
    fakes.act("python", f"trap 'touch told' TERM; {RUNS}")
    process = local(fakes, start=True)
    fakes.wait_for((fakes.folder / "ready").exists)
    process.terminate()
    fakes.wait_for((fakes.folder / "told").exists)
    process.terminate()
    fakes.finish(process, 137)


def test_gpus_are_shared_out(fakes):
    env = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "3,4,5,6"}
    local(fakes, "--processes", "2", env=env)
    shares = [fakes.calls(f"python{i}")[0].env["CUDA_VISIBLE_DEVICES"] for i in range(2)]
    assert shares == ["3,4", "5,6"]


def test_gpus_are_found(fakes):
    fakes.make("nvidia-smi")
    fakes.act("nvidia-smi", *["printf '0\\n1\\n'"] * 2)
    local(fakes, "--processes", "2", env={"JAX_PLATFORMS": ""})
    shares = [fakes.calls(f"python{i}")[0].env["CUDA_VISIBLE_DEVICES"] for i in range(2)]
    assert shares == ["0", "1"]
    done = local(fakes, "--processes", "3", env={"JAX_PLATFORMS": ""}, code=2)
    assert "2 GPU(s) cannot be shared out evenly" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--processes", "two"], "--processes takes a number, not 'two'"),
        (["--processes", "0"], "--processes must be at least 1"),
        (["--config=quickstart"], "unknown option --config=quickstart"),
        (["--pause"], "--pause takes a number"),
        (["--", "--config=quickstart"], "--workdir=FOLDER is missing"),
    ],
)
def test_bad_options_are_told_in_one_line(fakes, arguments, told):
    done = fakes.run("local.sh", *arguments, code=2)
    assert told in done.stderr and done.stderr.count("\n") == 1
    assert not fakes.calls("python")


def test_a_dry_run_shows_all_and_does_nothing(fakes):
    done = local(fakes, "--processes", "2", "--dry-run")
    first, second, restarts = done.stdout.splitlines()
    assert "PROCESS_ID=0" in first and "NUM_PROCESSES=2" in first
    assert "PROCESS_ID=1" in second and r"--config=a\ b" in second
    assert second.endswith(">>logs/runs/x/process-1.log")
    assert "at most 10 restarts" in restarts
    assert not (fakes.folder / "logs").exists() and tries(fakes) == [0, 0]


def test_logs_of_a_workdir_in_a_bucket(fakes):
    fakes.run("local.sh", "--", "--workdir=gs://bucket/runs/y")
    assert (fakes.folder / "logs/bucket/runs/y/process-0.log").exists()


def test_help_tells_the_options(fakes):
    done = fakes.run("local.sh", "--help")
    assert done.stdout.startswith("bash launch/local.sh --processes 2 -- ")
    for option in ("--processes", "--restarts", "--pause", "--grace", "--dry-run"):
        assert f"\n  {option} " in done.stdout


def alive(pid_file):
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True
