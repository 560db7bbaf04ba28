import os
import subprocess
import sys
from pathlib import Path

import pytest

from mdlm_jax.training import checkpoints

SCRIPT = """
import sys, time
from mdlm_jax.training.watchdog import Watchdog

def collective_that_hangs():
    time.sleep(60)

{body}
print("through")
"""

CASES = {  # what the process does; then how it ends
    "a step hangs": (
        """
with Watchdog(0.3, 60) as dog:
    dog.beat(7)
    collective_that_hangs()
""",
        "error: no step finished for 0.3 s since step 7 (above: where); what was saved is whole",
    ),
    "the start hangs": (
        """
with Watchdog(0.1, 0.5):
    collective_that_hangs()
""",
        "error: no step finished for 0.5 s since the start (above: where); what was saved is whole",
    ),
    "a hook hangs": (
        """
with Watchdog(0.1, 0.5) as dog:
    dog.beat(2)
    with dog.patience():
        collective_that_hangs()
""",
        "error: no step finished for 0.5 s since step 2 (above: where); what was saved is whole",
    ),
    "a step after a hook hangs": (
        """
with Watchdog(0.2, 60) as dog:
    dog.beat(2)
    with dog.patience():
        time.sleep(0.5)
    collective_that_hangs()
""",
        "error: no step finished for 0.2 s since step 2 (above: where); what was saved is whole",
    ),
    "nothing hangs": (
        """
with Watchdog(3, 60) as dog:
    time.sleep(3)  # compiles
    for step in range(10):
        time.sleep(0.3)
        dog.beat(step)
time.sleep(3)
with Watchdog(0, 0):  # off
    time.sleep(1)
""",
        None,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_process_that_hangs_ends_with_its_stacks(case):
    body, told = CASES[case]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body)], capture_output=True, text=True
    )
    if told is None:
        assert (done.returncode, done.stdout, done.stderr) == (0, "through\n", "")
    else:
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.splitlines()[-1] == told
        assert "in collective_that_hangs" in done.stderr


LOOP = """
import sys, time
from pathlib import Path
import toy_regression as toy
from mdlm_jax import parallel
from mdlm_jax.training import checkpoints
from mdlm_jax.training.loop import LoopConfig, fit
from mdlm_jax.training.metrics import MetricsWriter

class Batches(toy.Batches):
    def iterate(self, start_step):
        for step, batch in enumerate(super().iterate(start_step), start_step):
            if step == 7:
                time.sleep(120)
            yield batch

def hook(state, step):
    time.sleep(6)
    return {}

directory, mesh = Path(sys.argv[1]), parallel.make_mesh()
with checkpoints.open_checkpoints(directory / "checkpoints") as checkpointer:
    fit(
        toy.state(mesh), toy.step(), Batches(),
        config=LoopConfig(
            steps=12, eval_every=3, save_every=2, watchdog_seconds=4, watchdog_startup_seconds=90
        ),
        put=lambda batch: toy.put(batch, mesh), tokens_per_step=1,
        metrics=MetricsWriter(directory), checkpointer=checkpointer, hooks={"eval": hook},
    )
"""


@pytest.mark.slow
def test_the_loop_tells_it_of_steps_and_hooks(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOOP, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH')}"},
    )
    assert done.returncode == 1
    told = "error: no step finished for 4 s since step 6 (above: where); what was saved is whole"
    assert done.stderr.splitlines()[-1] == told
    assert checkpoints.list_steps(tmp_path / "checkpoints") == [2, 4, 6]
