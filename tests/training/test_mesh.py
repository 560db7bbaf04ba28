import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "on_four_devices.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("checkpoints"))],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_mesh_and_rows(found):
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert found["rows"] == [2, 2, 2, 2]
    assert "batch_size 6 is not a multiple of the 4 devices that share the rows" in found["error"]


def test_a_sharded_accumulated_step_is_the_plain_step(found):
    assert found["step_difference"] < 1e-6


def test_the_state_stays_where_it_is_and_compiles_once(found):
    assert found["state_stays"] is True
    assert found["kernel_shard"] == [4, 1]
    assert found["compilations"] == 1


def test_a_checkpoint_is_restored_onto_another_mesh(found):
    assert found["restored_equal"] is True
    assert found["restored_in_place"] is True
