import pytest

from mdlm_jax.host import distributed


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NUM_PROCESSES": "2"}, "NUM_PROCESSES set but not COORDINATOR_ADDRESS, PROCESS_ID"),
        (
            {"COORDINATOR_ADDRESS": "here", "NUM_PROCESSES": "2", "PROCESS_ID": "0"},
            "COORDINATOR_ADDRESS must be host:port, not 'here'",
        ),
        (
            {"COORDINATOR_ADDRESS": "here:1", "NUM_PROCESSES": "2", "PROCESS_ID": "2"},
            "PROCESS_ID must be a number from 0 to NUM_PROCESSES - 1, not '2' of '2'",
        ),
        (
            {"COORDINATOR_ADDRESS": "here:1", "NUM_PROCESSES": "two", "PROCESS_ID": "0"},
            "PROCESS_ID must be a number from 0 to NUM_PROCESSES - 1, not '0' of 'two'",
        ),
    ],
)
def test_incomplete_variables_are_refused_in_one_line(monkeypatch, variables, message):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message) as error:
        distributed.initialize()
    assert "\n" not in str(error.value)


SLURM = {"SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "node[1-2]"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, False),
        (SLURM, True),
        ({"SLURM_JOB_ID": "7"}, False),  # in an allocation, but not started by srun
        (KUBERNETES, True),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),  # a notebook's pod
    ],
)
def test_clusters_are_told_by_their_variables(environment, found):
    assert distributed.in_a_cluster({"JAX_PLATFORMS": "cpu", **environment}) is found


def test_alone_everything_is_agreed():
    with distributed.failing_together():
        pass
    with (
        pytest.raises(OSError, match="no such file"),
        distributed.failing_together(),
    ):
        raise OSError("no such file")
    distributed.require_same("a name", "a value")
