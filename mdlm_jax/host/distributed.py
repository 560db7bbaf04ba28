"""Several processes as one job: how they find each other, and how they agree."""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mdlm_jax.host import parallel

# The variables of a launcher, for use without a cluster that connects the processes.
VARIABLES = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")

_LONGEST_MESSAGE = 1024  # bytes


def initialize(heartbeat_seconds: int = 100) -> None:
    """Joins the processes of a job, before any device is touched. A lone process does nothing.

    If `COORDINATOR_ADDRESS` (host:port of process 0), `NUM_PROCESSES` and `PROCESS_ID` are set,
    they decide. Otherwise jax finds the others on TPU VMs, under SLURM (`srun`) and in indexed jobs
    of Kubernetes (which need the package `kubernetes`, except for TPUs).

    Args:
      heartbeat_seconds: a process that is silent for this long counts as dead, and all others end.

    Raises:
      ValueError: if the variables are incomplete or not numbers.
    """
    timeout = {"heartbeat_timeout_seconds": heartbeat_seconds}
    variables = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if variables:
        address, count, index = _process_of(variables)
        jax.distributed.initialize(
            address, count, index, cluster_detection_method="deactivate", **timeout
        )
    elif in_a_cluster(os.environ):
        jax.distributed.initialize(**timeout)


def in_a_cluster(environment: Mapping[str, str]) -> bool:
    """Whether jax can find the other processes by itself: `srun`, an indexed job, a TPU host."""
    slurm = {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= environment.keys()
    kubernetes = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    platforms = environment.get("JAX_PLATFORMS", "")
    tpu = (
        (not platforms or "tpu" in platforms)
        and importlib.util.find_spec("libtpu") is not None
        and any(Path(path).exists() for path in ("/dev/accel0", "/dev/vfio/0"))
    )
    return slurm or kubernetes or tpu


def _process_of(variables: Mapping[str, str]) -> tuple[str, int, int]:
    if missing := [name for name in VARIABLES if name not in variables]:
        raise ValueError(
            f"{', '.join(variables)} set but not {', '.join(missing)}: a process of a job needs "
            f"{', '.join(VARIABLES)}, a process alone none of them"
        )
    address, count, index = (variables[name] for name in VARIABLES)
    if not address.rpartition(":")[2].isdecimal() or ":" not in address:
        raise ValueError(f"COORDINATOR_ADDRESS must be host:port, not {address!r}")
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise ValueError(
            f"PROCESS_ID must be a number from 0 to NUM_PROCESSES - 1, not {index!r} of {count!r}"
        )
    return address, int(count), int(index)


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """If one process refuses something in the `with`, all refuse, so that none waits in vain.

    Raises:
      ValueError, OSError, ImportError: the error of this process. ValueError with the other's
        message, if another process refused.
    """
    mine = None
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        mine = error
    messages = _gathered("" if mine is None else f"{type(mine).__name__}: {mine}")
    if mine is not None:
        raise mine
    for index, message in enumerate(messages):
        if message:
            raise ValueError(f"process {index} refused: {message}")


def require_same(name: str, value: str) -> None:
    """Checks that all processes have the same `value`.

    Raises:
      ValueError: in every process, if they have not.
    """
    if len(values := {*_gathered(value)}) > 1:
        raise ValueError(f"{name} differs between the processes: {', '.join(sorted(values))}")


def of_first(number: int) -> int:
    """The number of process 0, in every process. All processes must call it."""
    return int(_gathered(str(number))[0])


def _gathered(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    if not jax.distributed.is_initialized():  # and perhaps there is no device to ask with
        return [text]
    mine = text.encode()[:_LONGEST_MESSAGE].ljust(_LONGEST_MESSAGE, b"\0")
    try:
        every = multihost_utils.process_allgather(np.frombuffer(mine, np.uint8))
    except ValueError as error:  # gloo raises it when a process died, which is no bad input
        raise RuntimeError(f"the processes of the job could not be asked: {error}") from error
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in every]


def make_vote(mesh: Mesh) -> Callable[[bool], jax.Array]:
    """`vote(flag) -> bool[]`, true in every process if any of them voted so.

    Every process votes, in the same order as it runs other programs. It does not block: the answer
    is computed on the devices, before what is dispatched after it.
    """
    everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    any_of = jax.jit(jnp.any, out_shardings=parallel.replicated(mesh))

    def vote(flag: bool) -> jax.Array:
        flags = np.full(mesh.size, flag)
        return any_of(
            jax.make_array_from_callback(flags.shape, everywhere, lambda index: flags[index])
        )

    return vote
