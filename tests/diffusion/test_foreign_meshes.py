import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "in_foreign_meshes.py"


@pytest.fixture(scope="module")
def told():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
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


def test_in_a_shard_map_that_checks_all_is_as_of_the_whole_batch(told):
    assert len(told) == 14
    assert [name for name, of in told.items() if not of["same in shards"]] == []


def test_rows_split_over_explicit_axes_are_refused_in_a_line_that_names_the_cure(told):
    for name, of in told.items():
        line, culprit = of["over explicit axes"], "canvas" if "sample" in name else "tokens"
        assert line.startswith(f"{culprit} is split over parts, of AxisType.Explicit"), name
        assert "\n" not in line, name
        assert "axis_types=(AxisType.Auto,)" in line and "jax.sharding.auto_axes" in line, name


def test_the_cure_that_is_named_works(told):
    tried = {name: of["same by auto_axes"] for name, of in told.items() if len(of) == 3}
    assert tried == {"at_rate": True, "bert, logits": True}
