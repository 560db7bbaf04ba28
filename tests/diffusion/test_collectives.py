import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent / "on_eight_devices.py"


@pytest.fixture(scope="module")
def collectives():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_pairs_on_one_device_move_nothing_but_sums(collectives):
    assert collectives["even"] == ["all-reduce"]


def test_pairs_over_two_devices_would_move_rows(collectives):
    assert {*collectives["odd"]} > {"all-reduce"}


def test_blocks_of_a_row_stay_on_its_device(collectives):
    assert collectives["blocks"] == [["all-reduce"]] * 2


@pytest.mark.parametrize("strategy", ["exact_count", "confidence", "remask", "in blocks"])
def test_the_sampler_moves_no_rows_and_writes_what_one_device_does(collectives, strategy):
    """Devices agree on whether anything is left to do, and on nothing else."""
    assert collectives[strategy] == {"collectives": ["all-reduce"], "same": True}
