"""Commands of the tests are forked from a process that has imported the library."""

import command_runs
import pytest


def test_a_command_leaves_the_process_that_forked_it():
    command_runs.run("report", "--help")
    assert not command_runs._free.empty()  # none is made where each command imports all anew


def test_a_command_that_is_given_up_answers_nobody_else():
    """As where pytest ends a test that takes too long."""
    command_runs.run("report", "--help")
    with pytest.raises(KeyboardInterrupt), command_runs._server() as server:
        asked = server._process
        raise KeyboardInterrupt
    assert asked.returncode is not None
    assert "mdlm_jax.report" in command_runs.run("report", "--help").stdout
