"""One training run on several topologies: the same rows, masks, dropout, losses and parameters."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]


def start(script, *arguments, devices, **variables):
    return subprocess.Popen(
        [sys.executable, str(TESTS / script), *map(str, arguments)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            **variables,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def run(output, sizes, accumulation=1, *, dropout=0.2, processes=1, devices=1):
    variables = [{}]
    if processes > 1:
        address = f"localhost:{free_port()}"
        variables = [
            {
                "COORDINATOR_ADDRESS": address,
                "NUM_PROCESSES": str(processes),
                "PROCESS_ID": str(index),
            }
            for index in range(processes)
        ]
    job = [
        start("on_topology.py", output, sizes, accumulation, dropout, devices=devices, **each)
        for each in variables
    ]
    told = [process.communicate()[0] for process in job]
    assert [process.returncode for process in job] == [0] * processes, "\n".join(told)
    return dict(np.load(output)), told[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("topologies")


@pytest.fixture(scope="module")
def one(folder):
    return run(folder / "one.npz", "1,1,1")


# What the mesh may not change is compared to float32 tolerance; Adam's first steps divide a
# gradient by its own size, which makes more of a rounding error.
TOLERANCE = {"loss": 2e-6, "params": 2e-5, "ema": 2e-5}


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        kind = name.split()[0]
        if kind in TOLERANCE:
            np.testing.assert_allclose(
                found[name], values, rtol=TOLERANCE[kind], atol=TOLERANCE[kind], err_msg=name
            )
        elif kind not in ("read", "padding"):
            np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.fixture(scope="module")
def cube(folder):
    return run(folder / "cube.npz", "2,2,2", devices=8)


def test_a_mesh_of_eight_devices_changes_nothing(one, cube):
    check_same(cube[0], one[0])


def test_nothing_is_moved_whole_that_is_split(cube):
    assert not re.search("[Ii]nvoluntary full rematerialization", cube[1])


def test_the_vocabulary_is_padded_where_the_tensor_axis_does_not_divide_it(one, cube):
    assert one[0]["padding"].shape == (0, 32)
    assert cube[0]["padding"].shape == (1, 32)


def test_two_processes_read_their_rows_and_change_nothing(one, folder):
    found, _ = run(folder / "two.npz", "2,2,2", processes=2, devices=4)
    assert found["read"] == 8
    check_same(found, one[0])


def test_rows_that_two_processes_share_are_read_by_both(one, folder):
    found, _ = run(folder / "shared.npz", "1,1,4", processes=2, devices=2)
    assert found["read"] == 16
    check_same(found, one[0])


def test_any_number_of_microbatches_takes_the_same_step(folder):
    whole, _ = run(folder / "whole.npz", "1,1,1", dropout=0)
    parts, _ = run(folder / "parts.npz", "2,1,1", 4, dropout=0, devices=2)
    check_same(parts, whole)


def test_dropout_of_microbatches_is_the_same_over_meshes(folder):
    one, _ = run(folder / "one_of_two.npz", "1,1,1", 2)
    four, _ = run(folder / "four_of_two.npz", "2,2,1", 2, devices=4)
    check_same(four, one)
