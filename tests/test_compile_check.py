"""The check of TPU programs; what needs the compiler is skipped where it is not installed."""

import importlib.util
import json

import pytest
from command_runs import run

from mdlm_jax.pods import aot

with_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra `tpu`)"
)

# Two narrow layers and BERT's vocabulary.
SMALL = (
    "--config=bert_base_v5e",
    "--config.data.length=128",
    "--config.model.layers=2",
    "--config.model.width=256",
    "--config.model.heads=4",
    "--config.model.mlp_width=1024",
    "--config.model.dropout=0.0",
    "--config.training.batch_size=32",
    "--config.evaluation.batch_size=8",
)


@pytest.mark.parametrize(
    "flags, told",
    [
        (("--topology=v5e:32x32",), "slices of v5e are 1x1, 2x2, 2x4"),
        (("--topology=v5e:4x4", "--slices=0"), "slices must be at least 1"),
        ((), "--topology is required"),
        (("--topology=v5e:4x4", "--json=/nowhere/report.json"), "there is no folder /nowhere"),
        (("--topology=v5e:4x4", "--config.model.heads=5"), "model.heads=5: must be a divisor"),
    ],
)
def test_bad_input_is_one_line(flags, told):
    done = run("compile_check", *SMALL, *flags, code=2)
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_it_tells_what_to_install():
    done = run("compile_check", *SMALL, "--topology=v5e:2x2", code=2)
    assert "pip install 'mdlm_jax[tpu]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_compilers_complaint_about_a_copy_is_shortened():
    line = (
        "W1122 07:48:54.097121    1631 spmd_partitioner.cc:654] [SPMD] Involuntary full "
        "rematerialization. The compiler cannot go from sharding {devices=[8,1,1]<=[8]} to "
        "{devices=[1,1,4,2]<=[2,4]T(1,0) last_tile_dim_replicate} efficiently for HLO operation "
        '%p.2 = f32[8,128,768]{2,1,0} parameter(2), metadata={op_name="jit(step)/add"}. As the '
        "last resort, SPMD will replicate the tensor and then partition it"
    )
    assert aot.rematerialized(line) == (
        "Involuntary full rematerialization: %p.2 = f32[8,128,768] of jit(step)/add is copied "
        "whole to every chip to go from {devices=[8,1,1]<=[8]} to {devices=[1,1,4,2]<=[2,4]T(1,0) "
        "last_tile_dim_replicate}"
    )


@pytest.mark.parametrize(
    "error, gib",
    [
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded", 20.5),
        ("the total memory required for HLO temporaries (512.0M) exceeds available", 0.5),
        ("something else", None),
    ],
)
def test_the_bytes_that_the_compiler_would_need(error, gib):
    needed = aot.needed(error)
    assert needed == (None if gib is None else gib * 2**30)


@with_libtpu
@pytest.mark.slow
def test_a_small_encoder_on_eight_chips(tmp_path):
    report = tmp_path / "report.json"
    mesh = ("--config.mesh.data=4", "--config.mesh.fsdp=2")
    done = run("compile_check", *SMALL, *mesh, "--topology=v5e:2x4", f"--json={report}")
    told = json.loads(report.read_text())
    step, sampler = told["training step"], told["sampler"]
    assert (told["chips"], told["mesh"]) == (8, {"data": 4, "fsdp": 2, "tensor": 1})
    assert step["fits"] and sampler["fits"]
    assert not step["errors"] and not sampler["errors"]
    # Two halves of everything but small vectors; Adam has two moments.
    parameters = step["memory_bytes"]["parameters"]
    assert parameters == pytest.approx(4 * told["parameters"] / 2, rel=0.01)
    assert step["memory_bytes"]["optimizer"] == pytest.approx(2 * parameters, rel=0.01)
    # Gradients of parameters come together at least once; the parts of fsdp are gathered.
    assert step["collectives"]["all-gather"]["received_bytes"] > 0
    assert all(kind["bounded"] for kind in step["collectives"].values())
    assert "training step: fits" in done.stdout
    assert f"sampler, one of {sampler['evaluations']} evaluations: fits" in done.stdout
    assert "warning" in done.stdout or not step["warnings"]


@with_libtpu
@pytest.mark.slow
def test_an_autoregressive_config_has_a_step_and_no_sampler(tmp_path):
    report = tmp_path / "report.json"
    causal = ("--config.objective.name=autoregressive", "--config.model.attention=causal")
    run("compile_check", *SMALL, *causal, "--topology=v5e:1x1", f"--json={report}")
    told = json.loads(report.read_text())
    assert told["training step"]["fits"] and "sampler" not in told


@with_libtpu
@pytest.mark.slow
def test_what_does_not_fit_is_an_error_with_its_bytes():
    many = ("--config.training.batch_size=16384", "--config.data.length=512")
    done = run("compile_check", *SMALL, *many, "--topology=v5e:1x1", code=1)
    assert "training step: DOES NOT FIT" in done.stdout
    assert "GiB a chip, and 15.75 GiB are there" in done.stdout
