"""The launchers of clusters, with the clusters' commands replaced."""

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"]
TRAIN = ("--config=lm1b", "--workdir=gs://bucket/a b")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run(
        [shellcheck, "--external-sources", script],
        cwd=LAUNCH.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


IMAGES = [LAUNCH / "Dockerfile", LAUNCH / "serve.Dockerfile"]


@pytest.mark.parametrize(
    "path", [*SCRIPTS, *LAUNCH.glob("*.yaml"), *IMAGES], ids=lambda path: path.name
)
def test_each_begins_with_the_command_that_runs_it(path):
    first = path.read_text().removeprefix("#!/usr/bin/env bash\n").splitlines()[:2]
    sourced = first[0].startswith("# shellcheck shell=bash") and first[1].startswith("# Sourced")
    assert sourced or f"launch/{path.name}" in first[0]


# SLURM


@pytest.fixture
def slurm(fakes):
    for name in ("srun", "scontrol", "sleep", "python"):
        fakes.make(name)

    def run(*, code=0, start=False, **env):
        env = {"SLURM_SUBMIT_DIR": str(LAUNCH.parent), "SLURM_JOB_ID": "7", **env}
        begin = fakes.start if start else fakes.run
        return begin("slurm.sbatch", *TRAIN, env=env, **({} if start else {"code": code}))

    return run


SRUN = ["--label", "--kill-on-bad-exit=0", "--wait=120", "python", "-m", "mdlm_jax.train", *TRAIN]


@pytest.mark.parametrize("code", [0, 2, 76])
def test_slurm_done_bad_input_and_updates_that_are_not_finite_are_final(fakes, slurm, code):
    fakes.act("srun", f"exit {code}")
    slurm(code=code)
    (call,) = fakes.calls("srun")
    assert call.args == SRUN and not fakes.calls("scontrol")


def test_slurm_requeues_what_was_stopped(fakes, slurm):
    fakes.act("srun", "exit 75")
    slurm(code=75)
    (call,) = fakes.calls("scontrol")
    assert call.args == ["requeue", "7"] and len(fakes.calls("srun")) == 1


def test_slurm_requeues_have_an_end(fakes, slurm):
    fakes.act("srun", "exit 75")
    assert "giving up" in slurm(code=75, SLURM_RESTART_COUNT="1000").stderr
    assert not fakes.calls("scontrol")


def test_slurm_says_if_it_does_not_requeue(fakes, slurm):
    fakes.act("srun", "exit 75")
    fakes.act("scontrol", "exit 1")
    assert "submit it again to go on" in slurm(code=75).stderr


def test_slurm_starts_a_crash_again_in_the_allocation(fakes, slurm):
    fakes.act("srun", "exit 1", "exit 134")
    slurm()
    assert len(fakes.calls("srun")) == 3 and not fakes.calls("scontrol")
    assert len(fakes.calls("sleep")) == 2 * 30


def test_slurm_restarts_have_an_end(fakes, slurm):
    (fakes.folder / "bin/sleep").write_text("")
    fakes.act("srun", *["exit 1"] * 99)
    slurm(code=1)
    assert len(fakes.calls("srun")) == 11 and not fakes.calls("scontrol")


def test_slurm_does_not_requeue_what_was_cancelled(fakes, slurm):
    ready = fakes.folder / "ready"
    fakes.act("srun", f"touch {ready}; while [ -e {ready} ]; do /bin/sleep 0.05; done; exit 75")
    process = slurm(start=True)
    fakes.wait_for(ready.exists)
    process.terminate()  # to the script; SLURM itself signals the tasks
    ready.unlink()
    fakes.finish(process, 75)
    assert not fakes.calls("scontrol")


def test_slurm_gives_a_task_a_node_all_gpus(fakes, slurm):
    slurm(SLURM_NTASKS_PER_NODE="1", SLURM_GPUS_ON_NODE="4", SLURM_CPUS_PER_TASK="6")
    slurm(SLURM_NTASKS_PER_NODE="4", SLURM_GPUS_ON_NODE="4")
    node, gpu = fakes.calls("srun")
    assert node.env["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3" and node.env["SRUN_CPUS_PER_TASK"] == "6"
    assert "JAX_LOCAL_DEVICE_IDS" not in gpu.env


def test_slurm_dry_run(fakes, slurm):
    done = slurm(DRY_RUN="1")
    assert done.stdout.startswith("srun ") and r"--workdir=gs://bucket/a\ b" in done.stdout
    assert "scontrol requeue" in done.stdout and not fakes.calls("srun")


def test_slurm_wants_the_repository(fakes, slurm):
    done = slurm(code=2, SLURM_SUBMIT_DIR=str(fakes.folder))
    assert done.stderr.startswith("error: submit it from the root") and not fakes.calls("srun")


def test_slurm_options():
    options = set(re.findall(r"^#SBATCH (.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.M))
    # Without B: the signal is for the tasks, which save.
    assert {"--requeue", "--signal=TERM@300", "--open-mode=append"} <= options


# Cloud TPU VMs


def gcloud_calls(fakes):
    return [call.args[3:] for call in fakes.calls("gcloud")]  # less "compute tpus KIND"


@pytest.fixture
def tpu(fakes):
    fakes.make("gcloud")

    def run(command, *arguments, code=0, name=("--tpu", "pod")):
        return fakes.run("tpu_vm.sh", command, *name, "--zone", "z", *arguments, code=code)

    return run


QUEUED = ("--queued", "pod")


@pytest.mark.parametrize(
    ("type", "image"),
    [
        ("v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v5p-256", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
        ("v4-8", "tpu-ubuntu2204-base"),
    ],
)
def test_tpu_create(fakes, tpu, type, image):
    tpu("create", "--type", type, "--", "--spot")
    tpu("create", "--type", type, "--slices", "2", name=QUEUED)
    one, two = fakes.calls("gcloud")
    assert one.args == [
        "compute", "tpus", "tpu-vm", "create", "pod", "--zone=z", f"--accelerator-type={type}",
        f"--version={image}", "--spot",
    ]  # fmt: skip
    assert two.args == [
        "compute", "tpus", "queued-resources", "create", "pod", "--zone=z",
        f"--accelerator-type={type}", f"--runtime-version={image}", "--node-count=2",
        "--node-prefix=pod",
    ]  # fmt: skip


# gcloud copies files to the folder `worker` and runs commands there, as on a worker of the TPU. Its
# uv makes an environment, and its python trains until it is told to stop.
WORKER = """
cd {folder}/worker
case "$*" in
  *" scp "*) cp "$5" . ;;
  *" ssh "*)
    for last; do :; done
    HOME=$PWD bash -c "${{last#--command=}}"
    ;;
esac
"""
UV = """
mkdir -p .venv/bin
touch .venv/bin/activate .venv/bin/python
chmod +x .venv/bin/python
"""
TRAINING = "trap 'exit 75' TERM; touch ready; while true; do /bin/sleep 0.05; done"


@pytest.fixture
def worker(fakes):
    folder = fakes.folder / "worker"
    folder.mkdir()
    yield folder
    pid = folder / "mdlm_jax/launch.pid"
    if pid.exists():  # what a failed test left running, in a session of its own
        subprocess.run(["pkill", "-KILL", "-s", pid.read_text().strip()], check=False)


def test_tpu_start_status_stop(fakes, tpu, worker, monkeypatch):
    for name in ("uv", "python"):
        fakes.make(name)
    fakes.act("gcloud", *[WORKER.format(folder=fakes.folder)] * 30)
    fakes.act("uv", UV)
    fakes.act("python", TRAINING)

    monkeypatch.setenv("MDLM_JAX_CACHE", "gs://bucket/a cache")
    tpu("start", "--", *TRAIN)
    fakes.wait_for((worker / "mdlm_jax/ready").exists)
    (call,) = fakes.calls("python")
    assert call.args == ["-m", "mdlm_jax.train", *TRAIN]
    assert call.env["MDLM_JAX_CACHE"] == "gs://bucket/a cache"
    make, install = fakes.calls("uv")
    assert make.args[:2] == ["venv", "--quiet"] and ".[tpu,gcs,quickstart]" in install.args
    with tarfile.open(worker / "mdlm_jax.tar.gz") as archive:
        assert {"mdlm_jax/train.py", "launch/local.sh", "configs/lm1b.py"} <= {*archive.getnames()}
    everywhere = [args for args in gcloud_calls(fakes) if "--worker=all" in args]
    assert [args[0] for args in everywhere] == ["scp", "ssh"]

    assert tpu("status").stdout.startswith("running\n")
    again = tpu("start", "--", *TRAIN, code=2)
    assert "error: a job is running here: stop it first" in again.stderr
    tpu("stop")
    fakes.wait_for(lambda: tpu("status").stdout.startswith("not running\n"))
    assert "the job ended with code 75" in (worker / "mdlm_jax/launch.log").read_text()
    assert "not running" in tpu("stop").stdout
    assert len(fakes.calls("python")) == 1


def test_tpu_slices_are_all_reached(fakes, tpu):
    for command in ("status", "stop", "logs", "delete"):
        tpu(command, name=QUEUED)
    tpu("start", "--", *TRAIN, name=QUEUED)
    status, stop, logs, delete, copy, start = fakes.calls("gcloud")
    for call in (status, stop, copy, start):
        assert {"queued-resources", "--worker=all", "--node=all", "--zone=z"} <= {*call.args}
    assert {"--worker=0", "--node=0"} <= {*logs.args} and "--force" in delete.args


def test_tpu_dry_run_prints_the_commands(fakes, tpu, monkeypatch):
    monkeypatch.setenv("MDLM_JAX_CACHE", "/a/folder/of/this/machine")
    done = tpu("start", "--dry-run", "--", *TRAIN)
    tar, copy, start = done.stdout.splitlines()
    assert tar.startswith("tar -czf ") and tar.endswith(" mdlm_jax configs launch")
    assert re.fullmatch(r"gcloud compute tpus tpu-vm scp \S+ pod: --zone=z --worker=all", copy)
    assert start.startswith("gcloud compute tpus tpu-vm ssh pod --zone=z --worker=all '--command=")
    assert "MDLM_JAX_CACHE" not in start
    create = tpu("create", "--type", "v6e-16", "--dry-run").stdout
    assert create.startswith("gcloud compute tpus tpu-vm create pod ")
    assert not fakes.calls("gcloud")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["begin"], "the first word is create, start, status, logs, stop or delete, not 'begin'"),
        (["start", "--zone", "z"], "--tpu NAME or --queued NAME is missing"),
        (["start", "--tpu"], "--tpu takes a value"),
        (["start", "--tpu", "pod", "--", "--workdir=runs/x"], "--workdir=gs://BUCKET/... is"),
        (["create", "--tpu", "pod"], "--type TYPE is that of a Cloud TPU"),
        (["create", "--tpu", "pod", "--type", "v6e-8", "--slices", "2"], "only a queued resource"),
        (["status", "--tpus", "pod"], "unknown option --tpus"),
    ],
)
def test_tpu_bad_options_are_told_in_one_line(fakes, tpu, arguments, told):
    done = fakes.run("tpu_vm.sh", *arguments, code=2)
    assert told in done.stderr and done.stderr.count("\n") == 1 and not fakes.calls("gcloud")


# GKE


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())


def test_the_jobset_has_the_shape_of_its_api(jobset):
    """What the models of the JobSet and Kubernetes APIs do not know would not come back."""
    assert JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset


def test_the_check_of_the_shape_can_fail(jobset):
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    wrong = {**job, "parallelism": "4"}
    with pytest.raises(ValueError, match="parallelism"):
        JobsetV1alpha2JobSet.from_dict(_with_job(jobset, wrong))
    unknown = _with_job(jobset, {**job, "backofLimit": 0})
    assert JobsetV1alpha2JobSet.from_dict(unknown).to_dict() != unknown


def _with_job(jobset, job):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return {
        **jobset,
        "spec": {**jobset["spec"], "replicatedJobs": [{**replicated, "template": {"spec": job}}]},
    }


def test_the_jobset_restarts_on_all_but_bad_input(jobset):
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0 and policy["restartStrategy"] == "BlockingRecreate"
    (rule,) = policy["rules"]
    assert rule["action"] == "FailJobSet" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] > 30  # the default, too short to save
    assert job["podFailurePolicy"]["rules"] == [
        {
            "action": "FailJob",
            "onExitCodes": {
                "containerName": container["name"],
                "operator": "In",
                "values": [2, 76],
            },
        }
    ]


def test_the_jobset_fills_its_slice(jobset):
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(sides[0]) * int(sides[1])
    machines = chips // container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == machines
    assert container["command"] == ["python", "-m", "mdlm_jax.train"]
    assert [flag.split("=")[0] for flag in container["args"]] == ["--config", "--workdir"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_the_image_copies_what_is_there(path):
    """And what .dockerignore lets through."""
    copied = re.findall(r"^COPY (.*) \S+$", path.read_text(), re.M)
    names = " ".join(copied).split()
    assert {"mdlm_jax", "configs", "pyproject.toml"} <= {*names}
    assert all((LAUNCH.parent / name).exists() for name in names)
    ignored = (LAUNCH.parent / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and {*names} == {line[1:] for line in ignored if line.startswith("!")}


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_the_image_installs_extras_that_there_are(path):
    project = tomllib.loads((LAUNCH.parent / "pyproject.toml").read_text())["project"]
    named = re.findall(r"EXTRAS=([\w,-]+)", path.read_text())
    assert len(named) > 1
    extras = {extra for each in named for extra in each.split(",")}
    assert extras <= {*project["optional-dependencies"]}
    assert 'pip install --no-cache-dir ".[$EXTRAS]"' in path.read_text()
