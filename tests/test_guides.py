"""The guides, checked: their blocks run in order, their diff applied, their commands run."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import TINY, run, write_text

import mdlm_jax
from mdlm_jax import as_denoiser, sample
from mdlm_jax.runs.experiment import Experiment

pytestmark = pytest.mark.slow  # two minutes of commands, one after the other

DOCS = Path(__file__).parents[1] / "docs"
PACKAGE = Path(mdlm_jax.__file__).parent


def blocks(page, language):
    text = (DOCS / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def program(page):
    """The names that the page's Python leaves behind."""
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    return names


def test_in_your_project_learns_the_language(capsys):
    names = program("in_your_project.md")
    entropy = np.log(33) / 16
    bound = float(names["likelihood"].nats_per_token)
    assert entropy - 3 * float(names["likelihood"].mc_error) < bound < 0.5
    assert f"{bound:.3f} +-" in capsys.readouterr().out
    blank = jnp.full((100, names["LENGTH"]), names["MASK"])
    free = np.asarray(names["write"](names["params"], jax.random.key(7), blank, 16))
    steps = np.diff(free, axis=1) % 11
    assert np.mean(np.all(steps == steps[:, :1], axis=1)) > 0.3  # by chance: never
    assert names["continued"][0, :3].tolist() == [5, 7, 9]
    assert not jnp.any(names["continued"] == names["MASK"])
    np.testing.assert_allclose(names["added"], names["spread"], rtol=1e-4)


def test_the_autoregressive_likelihood_is_its_loss(capsys):
    names = program("likelihood.md")
    right = np.diff(names["tokens"], axis=1, prepend=names["SEPARATOR"]) % 10 == 1
    expected = np.log(9 + np.exp(3)) - 3 * right.mean()
    assert names["loss"] == pytest.approx(expected, rel=1e-5)
    assert names["likelihood"].nats_per_token == pytest.approx(expected, rel=1e-5)
    assert f"{expected:.3f} nats per token, exact" in capsys.readouterr().out


def test_blocks_that_count_are_the_law_of_counting(capsys):
    names = program("blocks.md")
    told = np.log(9 + np.exp(6)) - 6  # of a token whose block has one before it
    expected = (4 * np.log(10) + 12 * told) / 16
    assert names["exact"].nats_per_token == pytest.approx(expected, rel=1e-5)
    assert names["loss"] == pytest.approx(expected, rel=1e-5)  # all tokens of a block cost the same
    assert "exact" in capsys.readouterr().out
    written, steps = names["written"], np.diff(names["written"][:, 3:], axis=1) % 10
    assert written[:, 0].tolist() == [3, 7] and written[1, 9] == 0
    assert np.mean(steps == 1) > 0.8 and names["trace"].evaluations.tolist() == [15, 14]


def test_steps_and_strategy_writes_two_tokens_a_step(capsys):
    names = program("steps_and_strategy.md")
    assert sorted(names["trace"].step[0].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    # Four tokens are equally likely: below both thresholds, so a step writes one and the last all.
    assert names["state"].evaluations.tolist() == [4, 8] and not (names["state"].canvas == 4).any()
    assert capsys.readouterr().out


def test_adapting_runs_and_its_commands_are_of_configs(capsys):
    names = program("adapting.md")
    by_step = [float(names["loss"](jax.random.key(1), step)) for step in (0, 1000)]
    assert by_step == pytest.approx([np.log(31)] * 2, rel=0.7) and capsys.readouterr().out
    lines = "".join(blocks("adapting.md", "bash")).splitlines()
    trained = [shlex.split(line) for line in lines if "mdlm_jax.train " in line]
    assert len(trained) >= 4
    for command in trained:
        config = config_file("adapt_bert").get_config()
        for flag in (word for word in command if word.startswith("--config.")):
            key, equals, value = flag.removeprefix("--config.").partition("=")
            section, name = key.split(".")
            before = config[section][name]
            config[section][name] = type(before)(value) if equals else True
            assert config[section][name] != before, flag
        Experiment.of(config.to_dict())


def config_file(name):
    spec = importlib.util.spec_from_file_location(name, DOCS.parent / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def extensions():
    return program("extending.md")


def test_the_strategy_writes_from_right_to_left(extensions):
    denoiser = as_denoiser(lambda tokens, t: jnp.zeros((*tokens.shape, 5)), 4)
    canvas = jnp.full((2, 9), 4).at[1, 3].set(0)
    strategy = extensions["right_to_left"]()
    tokens, trace = jax.jit(
        lambda key: sample(denoiser, key, canvas, mask_id=4, steps=3, strategy=strategy, trace=True)
    )(jax.random.key(0))
    assert trace.step[0].tolist() == [2, 2, 2, 1, 1, 1, 0, 0, 0]
    written = [step for step in trace.step[1].tolist() if step >= 0]
    assert written == sorted(written, reverse=True) and set(written) == {0, 1, 2}
    assert tokens[1, 3] == 0 and not jnp.any(tokens == 4)


def test_the_schedule_is_one(extensions):
    schedule = extensions["squared"]()
    t = jnp.linspace(0.01, 1, 50)
    np.testing.assert_allclose(schedule.rate(t), 1 - schedule.alpha(t), atol=1e-6)
    np.testing.assert_allclose(schedule.rate_to_time(schedule.rate(t)), t, atol=1e-3)
    slope = jax.vmap(jax.grad(schedule.alpha))(t)
    np.testing.assert_allclose(schedule.dalpha(t), slope, atol=1e-6)
    np.testing.assert_allclose(schedule.weight(t), -slope / schedule.rate(t), rtol=1e-4)


OPTION = """
import dataclasses, jax, jax.numpy as jnp
from mdlm_jax.networks import bert
config = bert.Config(vocab_size=9, mask_id=1, max_length=4, layers=1, width=8, heads=1, mlp_width=8)
capped = dataclasses.replace(config, logit_cap=0.5)
params = jax.tree.map(lambda x: 9 * x, bert.init(jax.random.key(0), config))
tokens = jnp.arange(4)[None]
plain, squashed = (jax.jit(lambda: bert.logits(params, c, tokens))() for c in (config, capped))
assert jnp.abs(plain).max() > 1
assert jnp.allclose(squashed, 0.5 * jnp.tanh(plain / 0.5), atol=1e-6)
try:
    dataclasses.replace(config, logit_cap=-1.0)
except ValueError as error:
    print(error)
"""


def test_the_option_is_a_diff_of_the_library_that_works(tmp_path):
    (diff,) = blocks("extending.md", "diff")
    assert len(diff.splitlines()) < 40
    shutil.copytree(PACKAGE, tmp_path / "mdlm_jax")
    patched = subprocess.run(
        ["patch", "-p1", "--fuzz=0"], input=diff, cwd=tmp_path, text=True, capture_output=True
    )
    assert patched.returncode == 0, patched.stdout
    done = subprocess.run(
        [sys.executable, "-c", OPTION], cwd=tmp_path, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "logit_cap=-1.0: must be 0 (none) or more" in done.stdout


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guides")
    text = write_text(folder / "text.txt")
    env = {"MDLM_JAX_CACHE": str(folder / "cache")}
    run("train", *TINY, "--workdir={folder}/run", text=text, folder=folder, env=env)
    run("evaluate", f"--workdir={folder}/run", "--split=test", "--draws=2", env=env)
    # Pages that need full attention name the run that has it.
    whole = ("--config.model.attention=full", "--config.model.window=0")
    run("train", *TINY, *whole, "--workdir={folder}/english", text=text, folder=folder, env=env)
    return folder / "run", env


# A training that takes minutes, as a tiny run: not of local attention, with room for a prompt.
SHORT = {
    "blocks": (
        *(flag for flag in TINY[1:] if "model.window" not in flag),
        "--config.data.length=48",
    )
}
UNRUN = ("adapt_bert", "english")  # they want a checkpoint (see the test above), an hour of a GPU


def commands():
    for page in sorted(DOCS.glob("*.md")):
        for block in blocks(page.name, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if any(f"--config={name}" in line for name in UNRUN):
                    continue
                if "mdlm_jax.serve " in line or page.name == "serving.md":  # test_serving_guide.py
                    continue
                if line.startswith("python -m mdlm_jax.") and "--workdir=runs/" in line:
                    yield pytest.param(line, id=f"{page.stem}: {line.split('mdlm_jax.')[1]}")


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_of_the_guides_runs(line, workdir):
    """In the run that its page trained, by this name, or in a tiny one."""
    folder, env = workdir
    own = folder.with_name(re.search(r"--workdir=runs/(\S+)", line)[1])
    if "mdlm_jax.train" in line or own.exists():
        folder = own
    line = re.sub(r"--workdir=\S+", f"--workdir={folder}", line)
    line = re.sub(r"--canary=\S+", f"--canary={folder.with_name('text.txt')}", line)
    line = re.sub(r"--output=", f"--output={folder.parent}/", line)
    _, _, module, *arguments = shlex.split(line, comments=True)
    config = re.search(r"--config=(\S+)", line)
    text = folder.with_name("text.txt")
    arguments = [re.sub(r"[{}]", r"\g<0>\g<0>", argument) for argument in arguments]
    arguments += [flag.format(text=text) for flag in SHORT.get(config and config[1], ())]
    assert run(module.removeprefix("mdlm_jax."), *arguments, env=env).stdout


def test_every_key_that_is_written_is_told(workdir):
    folder, _ = workdir
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    told = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "metrics.md").read_text(), flags=re.MULTILINE))

    def keys(value):
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    for written in (*lines, (folder / "evaluation_test.json").read_text()):
        missing = keys(json.loads(written)) - told
        assert not missing, f"docs/metrics.md does not tell {sorted(missing)}"


def test_your_own_text_runs_as_it_stands(tmp_path):
    shutil.copy(DOCS.parent / "README.md", tmp_path)
    environment = {
        **os.environ,
        "MDLM_JAX_CACHE": str(tmp_path / "cache"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    script = "set -e\n" + "".join(blocks("your_own_text.md", "bash"))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"coverage: (100|9\d)\.\d+%", done.stdout) and "NELBO" in done.stdout
    assert "<html" in (tmp_path / "samples.html").read_text()
    assert (tmp_path / "my_run" / "report.html").exists()
