import json
import shutil
from pathlib import Path

import exported
import jax
import numpy as np
import pytest
from command_runs import TINY, run, write_text

from mdlm_jax import interop
from mdlm_jax.runs import workdir
from mdlm_jax.runs.experiment import ObjectiveConfig

GOLDEN = Path(__file__).parent / "interop" / "golden"


def test_a_checkpoint_is_converted(tmp_path):
    target = tmp_path / "target"
    done = run("convert", f"--source={GOLDEN / 'bert'}", f"--target={target}")
    assert done.stdout == f"written: {target}, 2 layers of width 16, 19 tokens, the mask 7\n"
    assert not done.stderr
    jax.tree.map(
        np.testing.assert_array_equal,
        interop.load_pretrained(target).params,
        interop.load_pretrained(GOLDEN / "bert").params,
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 4])
def test_a_converted_run_writes_as_the_run_does(size, tmp_path):
    """It says of itself what its rows are: no `[CLS]` stands before a text, as of other BERTs."""
    objective = ObjectiveConfig("block" if size else "diffusion", block_size=size)
    run_folder = exported.write(tmp_path / "run", objective=objective, use_bias=True)
    target = tmp_path / "target"
    done = run("convert", f"--source={run_folder}", f"--target={target}")
    assert ("in blocks of 4: generate" in done.stdout) == bool(size)
    asked = ["--prompt=wool [MASK] [MASK] honey", "--steps=1", "--temperature=0"]
    own = run("generate", f"--workdir={run_folder}", *asked).stdout
    assert own == run("generate", f"--checkpoint={target}", *asked).stdout
    (target / "mdlm_jax.json").unlink()  # then it is a BERT like others
    assert own != run("generate", f"--checkpoint={target}", *asked).stdout


def test_the_mask_is_told_where_no_tokenizer_tells_it(tmp_path):
    arguments = (f"--source={GOLDEN / 'roberta'}", f"--target={tmp_path}", "--mask_id=4")
    assert "the mask 4" in run("convert", *arguments).stdout
    assert json.loads((tmp_path / "config.json").read_text())["mask_token_id"] == 4


@pytest.mark.parametrize(
    "source, target, told",
    [
        ("{golden}/bert", "{golden}", "is not an empty folder"),
        ("{folder}", "{folder}/new", "has no config.json"),
        ("{folder}/nothing", "{folder}/new", "accepted are a folder, or a name of the"),
    ],
)
def test_bad_input_is_one_line(source, target, told, tmp_path):
    places = {"golden": GOLDEN, "folder": tmp_path}
    done = run("convert", f"--source={source}", f"--target={target}", code=2, **places)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and told in line
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_name_of_the_hub(tmp_path):
    commit = "0" * 40
    cached = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(GOLDEN / "bert", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    env = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run("convert", "--source=owner/tiny", f"--target={tmp_path}/out", env=env)
    assert interop.load_pretrained(tmp_path / "out").config.mask_id == 7
    done = run("convert", "--source=owner/absent", "--target={out}", out="out", env=env, code=2)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: 'owner/absent' is no folder here, and the Hugging Face hub")


@pytest.mark.slow
def test_the_weights_of_a_run_are_converted(tmp_path):
    text = write_text(tmp_path / "text.txt")
    env = {"MDLM_JAX_CACHE": str(tmp_path / "cache")}
    of_bert = (
        "--config.model.norm_position=post", "--config.model.norm=layernorm",
        "--config.model.norm_eps=1e-12", "--config.model.positions=learned",
        "--config.model.gated=False", "--config.model.activation=gelu",
        "--config.model.qk_norm=False", "--config.model.use_bias=True",
        "--config.model.attention=full", "--config.model.window=0",
    )  # fmt: skip
    run("train", *TINY, *of_bert, "--workdir={folder}/run", text=text, folder=tmp_path, env=env)
    run("convert", f"--source={tmp_path}/run", f"--target={tmp_path}/out")
    trained, converted = workdir.load(tmp_path / "run"), interop.load_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, converted.params, trained.params)
    assert converted.config.mask_id == trained.encoder.mask_id
    assert converted.tokenizer.to_str() == trained.tokenizer.to_str()
