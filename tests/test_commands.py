"""The commands as a user runs them, on a text of our own with a tiny encoder."""

import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest
from command_runs import TINY, command, write_text
from command_runs import run as run_command

LENGTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    write_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """`run(command, *arguments)`, with {text} and {folder} filled in and a cache of its own."""
    env = {"MDLM_JAX_CACHE": str(folder / "cache")}

    def run(name, *arguments, code=0, env=env):
        places = {"text": folder / "text.txt", "folder": folder}
        return run_command(name, *arguments, code=code, env=env, **places)

    return run


@pytest.fixture(scope="module")
def workdir(folder, run):
    done = run("train", *TINY, "--workdir={folder}/run")
    assert "validation NELBO" in done.stdout and "unigram" in done.stdout
    return folder / "run"


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_model_trained_on_tpus_writes_elsewhere(workdir, folder, run):
    moved = folder / "from_tpu"
    shutil.copytree(workdir, moved)
    config = json.loads((moved / "config.json").read_text())
    config["model"]["attention_backend"] = "splash"
    (moved / "config.json").write_text(json.dumps(config))
    here, there = (
        run("generate", f"--workdir={path}", "--steps=2").stdout for path in (workdir, moved)
    )
    assert here == there


def test_prepare_without_beam_tells_how_to_get_it(run, tmp_path):
    """Its absence is that of a package that cannot be imported, whatever is installed here."""
    (tmp_path / "apache_beam.py").write_text(
        "raise ModuleNotFoundError('No module named apache_beam', name='apache_beam')"
    )
    env = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = run("prepare", *TINY, "--runner=DirectRunner", code=2, env=env)
    assert done.stderr == (
        "error: --runner=DirectRunner needs Apache Beam: pip install 'mdlm_jax[tfds-build]'\n"
    )


def test_prepare_shows_the_rows(run):
    done = run("prepare", *TINY, "--show=2")
    assert re.search(r"train +validation +test", done.stdout)

    def total(name):
        (line,) = re.findall(rf"^ *{name} +([\d,]+) +([\d,]+) +([\d,]+) *$", done.stdout, re.M)
        return sum(int(number.replace(",", "")) for number in line)

    assert total("documents") == 400 and total("cut off, tokens") == 0
    assert total("rows") == pytest.approx(total("tokens") / LENGTH, abs=3)
    assert "coverage: 100.000%" in done.stdout
    assert re.search(r"train, row 1:\n\w.* (people|that|the) ", done.stdout)
    assert "train, row 2" not in done.stdout


def test_training_leaves_what_it_promises(workdir):
    kinds = [(each["step"], each["kind"]) for each in metrics(workdir)]
    assert kinds == [(2, "train"), (4, "train"), (4, "eval"), (4, "sample")]
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["max_length"] == LENGTH and config["training"]["steps"] == 4
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["2", "4"]
    assert (workdir / "tokenizer.json").exists() and (workdir / "data.json").exists()


@pytest.mark.slow
def test_a_second_start_says_done_and_more_steps_go_on(run, workdir):
    assert "is done: it has 4 of 4 steps" in run("train", *TINY, f"--workdir={workdir}").stdout
    done = run("train", *TINY, "--config.training.steps=6", f"--workdir={workdir}")
    assert "resuming at step 4" in done.stdout
    assert "training.steps: 4 -> 6" in done.stdout
    assert metrics(workdir)[-1]["step"] == 6


def test_a_run_goes_on_when_its_text_has_moved(run, workdir, folder):
    """What identifies the data is what they are, not where they lie."""
    moved = "--config.data.files={folder}/moved.txt"
    (folder / "moved.txt").write_text((folder / "text.txt").read_text())
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    del config["model"]["rope_theta"]  # as a version wrote it that did not know the option
    path.write_text(json.dumps(config))
    # Another test may have gone on with this run.
    steps = f"--config.training.steps={config['training']['steps']}"
    done = run("train", *TINY, moved, steps, f"--workdir={workdir}")
    assert "is done" in done.stdout and "data.files" in done.stdout


def test_evaluate_writes_the_likelihood_and_the_report(run, workdir):
    done = run("evaluate", f"--workdir={workdir}", "--split=test", "--draws=2", "--batch_size=64")
    told = json.loads((workdir / "evaluation_test.json").read_text())
    card = json.loads((workdir / "data.json").read_text())
    assert told["rows"] == card["splits"]["test"]["rows"]
    assert told["tokens"] == told["rows"] * LENGTH
    assert f"{told['nats_per_token']:.3f}" in done.stdout
    assert 0 < told["mc_error"] < 1 and 0 < told["text_error"] < 1
    assert told["bigram"] < told["unigram"] < told["nats_per_token"] + 1
    assert [point["rate"] for point in told["rate_curve"]][-1] == 1.0
    assert "NELBO" in (workdir / "report.html").read_text()


PROMPTS = ("--prompt=the city of [MASK] [MASK]", "--prompt=an old {{mask:3}}", "--prompt=")


def test_generate_fills_the_masks_and_keeps_the_rest(run, workdir, folder):
    flags = (f"--workdir={workdir}", "--steps=4", "--save", "--html={folder}/page.html")
    done = run("generate", *flags, *PROMPTS)
    first, old, _ = (workdir / "samples.txt").read_text().split("\n\n")
    assert done.stdout.startswith(f"{first}\n\n{old}\n\n") and "[MASK]" not in done.stdout
    assert first.startswith("the city of") and old.startswith("an old")
    filled, three, free = json.loads((workdir / "samples.json").read_text())
    assert [step >= 0 for _, step, _ in filled["tokens"]][-2:] == [True, True]
    assert sum(step >= 0 for _, step, _ in filled["tokens"]) == 2
    assert sum(step >= 0 for _, step, _ in three["tokens"]) == 3
    assert sum(step >= 0 for _, step, _ in free["tokens"]) == LENGTH
    assert {step for _, step, _ in free["tokens"]} == {0, 1, 2, 3}
    for sample in (filled, three, free):
        assert "".join(piece for piece, _, _ in sample["tokens"]) == sample["text"]
        assert all(log_prob < 0 for _, step, log_prob in sample["tokens"] if step >= 0)
    page = (folder / "page.html").read_text()
    assert "<html" in page and "the city of" in re.sub("<[^>]+>", "", page)
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page

    again = run("generate", *flags[:2], *PROMPTS, "--watch")  # no terminal: the texts alone
    assert again.stdout == done.stdout[: done.stdout.index("written: ")]
    assert run("generate", *flags[:2], *PROMPTS, "--seed=1").stdout != again.stdout


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch(run, workdir):
    flags = (f"--workdir={workdir}", "--steps=4", "--json", "--samples=2", *PROMPTS)
    together, alone = (run("generate", *flags, f"--batch_size={n}").stdout for n in (32, 4))
    assert together == alone
    lines = [json.loads(line) for line in together.splitlines()]
    assert [(each["prompt"], each["sample"]) for each in lines][:3] == [
        ("the city of [MASK] [MASK]", 0), ("the city of [MASK] [MASK]", 1), ("an old {mask:3}", 0),
    ]  # fmt: skip
    assert lines[0]["text"] != lines[1]["text"]


@pytest.fixture(scope="module")
def other(run, workdir, folder):
    """Another run, in a folder where one began that saved nothing."""
    (folder / "slower").mkdir()
    (folder / "slower" / "config.json").write_text((workdir / "config.json").read_text())
    run("train", *TINY, "--config.optimizer.learning_rate=1e-4", "--workdir={folder}/slower")
    return folder / "slower"


@pytest.mark.slow
def test_a_run_in_which_nothing_was_saved_takes_another_config(other):
    """What is wrong may be found after the folder is made: the next try must not suffer."""
    config = json.loads((other / "config.json").read_text())
    assert config["optimizer"]["learning_rate"] == 1e-4


@pytest.mark.slow
def test_a_profile_is_left_in_the_workdir(run, folder):
    run("train", *TINY, "--config.profile_steps=1:3", "--workdir={folder}/profiled")
    (trace,) = (folder / "profiled").glob("plugins/profile/*/perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_report_makes_one_page_or_compares(run, workdir, folder, other):
    assert f"written: {workdir}/report.html" in run("report", f"{workdir}").stdout
    output = folder / "comparison.html"
    run("report", f"{workdir}", f"{other}", f"--output={output}")
    page = output.read_text()
    assert "slower" in page and "learning_rate" in page


VARIANTS = {
    "mlm": ("--config.objective.name=mlm",),
    "time": ("--config.model.time_conditioning=True", "--config.training.accumulation=2"),
    "padded": ("--config.data.rows=padded", "--config.data.length=24"),
    "bernoulli": ("--config.objective.corruption=bernoulli", "--config.objective.schedule=cosine"),
    "characters": ("--config.data.tokenizer=characters", "--config.model.dropout=0.1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_train_evaluate_and_write(run, folder, name):
    run("train", *TINY, *VARIANTS[name], f"--workdir={folder}/{name}")
    run("evaluate", f"--workdir={folder}/{name}", "--draws=2", "--batch_size=64")
    told = json.loads((folder / name / "evaluation_test.json").read_text())
    card = json.loads((folder / name / "data.json").read_text())["splits"]["test"]
    if name == "padded":  # every token counts once, padding never
        assert told["tokens"] == card["tokens"] - card["cut_tokens"]
    assert told["mc_error"] > 0 and told["unigram"] > told["bigram"]
    done = run("generate", f"--workdir={folder}/{name}", "--steps=2", "--prompt=the [MASK]")
    assert done.stdout.startswith("the")


@pytest.mark.slow
def test_labels_condition_what_is_written(run, folder):
    lines = [
        {"text": f"{word} {word} {word} {i}", "kind": word}
        for i in range(300)
        for word in ("salt", "wool")
    ]
    (folder / "kinds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [flag for flag in TINY if "data.documents" not in flag and "data.files" not in flag]
    run(
        "train", *flags, "--config.data.files={folder}/kinds.jsonl",
        "--config.data.label_field=kind", "--config.model.classes=2",
        "--config.training.steps=300", "--config.optimizer.learning_rate=1e-2",
        "--config.evaluation.every=300", "--config.training.save_every=300",
        "--workdir={folder}/kinds",
    )  # fmt: skip
    for word, other in (("salt", "wool"), ("wool", "salt")):
        flags = ("--workdir={folder}/kinds", f"--label={word}", "--steps=16", "--samples=4")
        text = run("generate", *flags).stdout
        assert text.count(word) > 4 * text.count(other)
    done = run("generate", "--workdir={folder}/kinds", "--label=honey", code=2)
    assert "a label must be one of salt, wool, not 'honey'" in done.stderr


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "generate", "prepare", "report", "export", "harness"]
)
def test_help_begins_with_the_command(run, name):
    done = run(name, "--help")
    assert f"python -m mdlm_jax.{name} " in done.stdout
    assert (
        "--config" if name == "prepare" else "--workdir" if name != "report" else "--output"
    ) in (done.stdout)


def start(folder, *arguments):
    places = {"text": folder / "text.txt", "folder": folder}
    return subprocess.Popen(
        command("train", arguments, **places),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background ignore Ctrl-C, and would have the command do so too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_steps(process, workdir):
    deadline = time.monotonic() + 120
    while not (workdir / "metrics.jsonl").exists() or len(metrics(workdir)) < 10:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_signal_saves_exits_75_and_the_run_goes_on(run, folder, monkeypatch):
    monkeypatch.setenv("MDLM_JAX_CACHE", str(folder / "cache"))
    workdir = folder / "stopped"
    endless = ("--config.training.steps=30000", "--config.evaluation.every=30000")
    process = start(folder, *TINY, *endless, f"--workdir={workdir}")
    wait_for_steps(process, workdir)

    second = run("train", *TINY, *endless, f"--workdir={workdir}", code=2)
    told = rf"error: {workdir}: process {process.pid} on .* is training there: wait for it"
    assert re.match(told, second.stderr) and len(second.stderr.splitlines()) == 1

    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "all is saved: start again to go on" in output
    stopped = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    steps = stopped + 2
    done = run("train", *TINY, f"--config.training.steps={steps}", f"--workdir={workdir}")
    assert f"resuming at step {stopped}" in done.stdout
    assert metrics(workdir)[-1]["step"] == steps


@pytest.mark.slow
def test_control_c_while_python_imports_ends_the_command_without_a_crash(folder):
    """jaxlib's C++ would abort, NumPy and TensorStore make other errors of it."""
    for tenths in range(1, 23, 3):
        process = start(folder, "--help")
        time.sleep(tenths / 10)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGINT), told


@pytest.mark.slow
def test_control_c_at_any_point_loses_nothing(run, folder, monkeypatch):
    """Whenever it comes; and in the end the run is as one that was left alone."""
    monkeypatch.setenv("MDLM_JAX_CACHE", str(folder / "cache of the interrupted"))
    workdir = folder / "interrupted"
    flags = (*TINY, "--config.training.steps=40", f"--workdir={workdir}")
    draw = random.Random(0)
    codes = []
    # The first while Python imports, on any machine.
    for earliest, latest in [(0.1, 0.3), (0.3, 3), (1.5, 4), (3, 10), (6, 14)]:
        process = start(folder, *flags)
        time.sleep(draw.uniform(earliest, latest))
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        codes.append(process.returncode)
        assert process.returncode in (0, 75, -signal.SIGINT), told
        if process.returncode == -signal.SIGINT and "mdlm_jax" in told:
            # Only while Python still imports is there nobody to say it in one line.
            assert "interrupted; what was saved is whole" in told or "import" in told, told
    assert -signal.SIGINT in codes
    run("train", *flags, env={})
    run("train", *TINY, "--config.training.steps=40", "--workdir={folder}/straight", env={})

    def told(workdir):
        records = {(r["step"], r["kind"]): r for r in metrics(workdir)}
        return records[40, "eval"]["nats_per_token"], records[40, "sample"]["text"]

    assert told(workdir) == told(folder / "straight")


@pytest.mark.slow
def test_losses_depend_neither_on_microbatches_nor_on_the_mesh(run, folder, tmp_path, monkeypatch):
    # Wide enough that the biases, which fsdp leaves whole, are few.
    wide = (*TINY, "--config.model.width=128", "--config.model.mlp_width=128")
    run("train", *wide, f"--workdir={tmp_path}/one")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    mesh = ("--config.mesh.data=1", "--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    run("train", *wide, *mesh, f"--workdir={tmp_path}/mesh")
    run("train", *wide, "--config.training.accumulation=2", *mesh, f"--workdir={tmp_path}/both")

    def told(workdir):
        records = {(r["step"], r["kind"]): r for r in metrics(workdir)}
        losses = [records[step, "train"]["loss"] for step in (2, 4)]
        return [*losses, records[4, "eval"]["nats_per_token"]]

    assert told(tmp_path / "mesh") == pytest.approx(told(tmp_path / "one"), rel=1e-4)
    assert told(tmp_path / "both") == pytest.approx(told(tmp_path / "one"), rel=1e-4)


@pytest.mark.slow
def test_updates_that_stay_non_finite_end_the_run_with_the_step_named(run, tmp_path):
    wild = ("--config.optimizer.learning_rate=1e30", "--config.training.max_bad_steps=3")
    flags = (*TINY, *wild, "--config.training.steps=40", f"--workdir={tmp_path}/diverged")
    done = run("train", *flags, code=76)
    assert re.search(
        r"error: step \d+: 3 updates in a row .* the checkpoints are intact", done.stderr
    )


@pytest.mark.slow
def test_training_tells_each_time_what_of_its_text_is_unknown(folder, run):
    """WordPiece makes an [UNK] of each line of a text without spaces."""
    draw = random.Random(0)
    lines = ("".join(draw.choices("ผพบมฆลฒฎรฤขษปคซฮฉฟก", k=150)) for _ in range(800))
    (folder / "thai.txt").write_text("\n".join(lines), encoding="utf-8")
    flags = [
        flag.replace("{text}", "{folder}/thai.txt").replace("paragraph", "line") for flag in TINY
    ]
    for _ in range(2):  # the second finds the data prepared, and the run done
        done = run("train", *flags, "--workdir={folder}/thai")
        assert "warning: 100.0% of the training text is unknown to the tokenizer" in done.stdout
        assert f"{folder}/thai.txt: WordPiece knows no word of more than 100" in done.stdout
