"""Checkpoints that move between meshes, devices and processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_checkpoints import restore

from mdlm_jax.training import checkpoints

MOVE = """
import sys
import jax, jax.numpy as jnp
import toy_regression as toy
from mdlm_jax import distributed, parallel
from mdlm_jax.training import checkpoints

directory, axes, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
distributed.initialize()
mesh = parallel.make_mesh(*map(int, axes.split("x")))
with checkpoints.open_checkpoints(directory) as checkpointer:
    if checkpoints.latest_step(checkpointer) is None:
        state = jax.device_get(toy.state()._replace(step=jnp.int32(1)))
        state = jax.device_put(state, toy.shardings(mesh))
    else:
        state = checkpoints.restore(checkpointer, toy.abstract(mesh))
        assert jax.tree.map(lambda x: x.sharding, state) == toy.shardings(mesh)
        print("restored", int(state.step))
    while int(state.step) <= last:
        checkpoints.save(checkpointer, state)
        state = state._replace(step=state.step + 1)
        checkpointer.wait()
"""


def move(directory, axes, last, devices, processes=1):
    """Restores in other processes onto a mesh, saves until step `last`; what they print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    job = {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": str(processes)}
    environment = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", MOVE, directory, axes, str(last)],
            env={**environment, **({**job, "PROCESS_ID": str(i)} if processes > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors
    return outputs


def assert_holds(directory, step, expected):
    restored = restore(directory)
    assert int(restored.step) == step
    jax.tree.map(np.testing.assert_array_equal, restored._replace(step=expected.step), expected)


@pytest.mark.slow
def test_a_checkpoint_moves_between_meshes_and_to_fewer_devices(tmp_path, state):
    move(tmp_path, "2x2x2", last=1, devices=8)
    assert_holds(tmp_path, 1, state)  # here is one device, not those that its files name
    assert move(tmp_path, "4x1x2", last=2, devices=8)[0][0] == "restored 1\n"
    assert_holds(tmp_path, 2, state)
    assert move(tmp_path, "1x1x1", last=3, devices=1)[0][0] == "restored 2\n"
    assert move(tmp_path, "1x2x4", last=4, devices=8)[0][0] == "restored 3\n"
    assert_holds(tmp_path, 4, state)


@pytest.mark.slow
def test_a_checkpoint_moves_between_numbers_of_processes(tmp_path, state):
    move(tmp_path, "1x2x1", last=3, devices=1, processes=2)
    assert_holds(tmp_path, 3, state)
    for path in (tmp_path / "3").glob("opt_state/d/*"):
        path.unlink()
    (first, told), (second, silence) = move(tmp_path, "2x2x1", last=4, devices=2, processes=2)
    assert first.endswith("restored 2\n") and second.endswith("restored 2\n")  # after Gloo's
    assert "3 is damaged" in told and "damaged" not in silence
    assert checkpoints.list_steps(tmp_path) == [2, 3, 4]
    assert (tmp_path / "3.damaged").is_dir()
    assert_holds(tmp_path, 4, state)
