"""A model is measured wherever it lies, and on any mesh to the same figures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import exported
import jax
import numpy as np
import pytest
from etils import epath

from mdlm_jax import interop
from mdlm_jax.host import parallel
from mdlm_jax.runs import models, workdir

GOLDEN = Path(__file__).parents[1] / "interop" / "golden"


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("models") / "run", positions="rope")


def test_a_run_is_loaded_with_its_weights_and_step(run, mesh):
    model = models.load(str(run), mesh)
    trained = workdir.load(epath.Path(run))
    jax.tree.map(np.testing.assert_array_equal, model.params, trained.params)
    assert (model.weights, model.step, model.length) == ("ema", exported.STEP, exported.LENGTH)
    assert not model.exact and model.objective.name == "diffusion"


PADDED = {"rows": "padded", "length": exported.LENGTH}
PAIRS = {"prompt_field": "prompt", "source": "text_files", "files": "a.jsonl"}


@pytest.mark.parametrize(
    ("told", "padded"),
    [({"rows": "packed"}, False), (PADDED, True), (PADDED | PAIRS, False), ({}, False)],
)
def test_a_run_tells_whether_its_rows_hold_padding(run, told, padded):
    trained = workdir.load(epath.Path(run))
    assert (
        models.of_run(trained._replace(config=trained.config | {"data": told}), "ema").padded
        == padded
    )


def test_a_checkpoint_of_hugging_face_is_loaded_as_it_is(mesh):
    model = models.load(str(GOLDEN / "bert"), mesh)
    theirs = interop.load_pretrained(GOLDEN / "bert")
    jax.tree.map(np.testing.assert_array_equal, model.params, theirs.params)
    assert model.encoder == theirs.config and model.objective.name == "mlm"
    assert (model.weights, model.step, model.length) == (None, None, theirs.config.max_length)


def test_what_cannot_be_measured_is_refused(mesh):
    with pytest.raises(ValueError, match="is no run: it has one kind of weights, and not 'params'"):
        models.load(str(GOLDEN / "bert"), mesh, weights="params")
    with pytest.raises(ValueError, match=r"roberta has no tokenizer\.json and no vocab\.txt"):
        models.load(str(GOLDEN / "roberta"), mesh)
    with pytest.raises(FileNotFoundError, match="no folder at"):
        models.load("nowhere/at/all", mesh)


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    """A checkpoint of ModernBERT's kind with an odd vocabulary, which a tensor axis pads."""
    folder = tmp_path_factory.mktemp("mesh")
    modern = {
        **{"norm_position": "pre", "embedding_norm": True, "positions": "rope", "gated": True},
        **{"token_types": 0, "norm_eps": 1e-5},
    }
    trained = workdir.load(epath.Path(exported.write(folder / "run", **modern)))
    interop.save_pretrained(
        folder / "bert", interop.Pretrained(trained.params, trained.encoder, trained.tokenizer)
    )
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).parents[1] / "likelihood_on_eight_devices.py"),
            folder / "bert",
        ],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "nvoluntary full rematerialization" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_no_mesh_changes_a_figure(on_eight_devices):
    one = on_eight_devices.pop("one device")
    for name, told in on_eight_devices.items():
        for what, figures in one["figures"].items():
            for leaf, expected in zip(
                jax.tree.leaves(told["figures"][what]), jax.tree.leaves(figures), strict=True
            ):
                assert leaf == pytest.approx(expected, rel=1e-5, abs=1e-7), (name, what)
    cube = on_eight_devices["data=2,fsdp=2,tensor=2"]
    assert cube["held"] == 1 / 4 and cube["vocabulary"] == one["vocabulary"] + 1


@pytest.mark.slow
def test_the_last_batch_is_counted_once(on_eight_devices):
    for told in on_eight_devices.values():
        for what in ("nelbo", "exact"):
            assert told["figures"][what]["tokens"] == 20 * 16 + 5
            assert told["figures"][what]["rows"] == 21
