"""TPU slices: which exist, the speed of their chips, and devices to compile for without TPUs.

A topology is named as Google does, generation and shape in chips: `v5e:16x16`, `v5p:4x4x8`.
"""

import dataclasses
import importlib.util
import itertools
import math
import os

import jax
from jax.experimental import topologies


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs. Speeds are peaks of one chip.

    Attributes:
      flops: bfloat16 operations a second.
      hbm: bytes of memory that a program may have.
      hbm_speed: bytes a second from and to its memory.
      ici_speed: bytes a second that it receives from the other chips of its slice, over all links.
      dcn_speed: bytes a second that it receives from other slices.
      shapes: of slices, in chips.
      accelerator: prefix of the accelerator type.
      cores: how many the accelerator type counts for each chip.
      options: of `jax.experimental.topologies.get_topology_desc`.
    """

    flops: float
    hbm: int
    hbm_speed: float
    ici_speed: float
    dcn_speed: float
    shapes: tuple[tuple[int, ...], ...]
    accelerator: str
    cores: int = 1
    options: tuple[tuple[str, str], ...] = ()


_GIB = 2**30
_GBIT = 1e9 / 8

_LONGEST_SIDE = 24  # of the largest slice that is documented, 16x16x24 (and of v4's 12x12x24)
_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))


def _cubes(most_chips: int) -> tuple[tuple[int, ...], ...]:
    """Parts of a cube of 4x4x4, and boxes of whole cubes, their sides in ascending order."""
    parts = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
    boxes = itertools.combinations_with_replacement(range(4, _LONGEST_SIDE + 1, 4), 3)
    return parts + tuple(box for box in boxes if math.prod(box) <= most_chips)


# Shapes, peaks and bandwidths: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read in November
# 2026. The documented bandwidth of the links counts both directions, and here it counts one. Where
# two of those pages differ (v6e: 1640 and 1600 GB/s, 3584 and 3200 Gbit/s), the larger is taken. A
# chip's share of the network between slices is its pod's: 6.4 Tbit/s (v5e) and 25.6 (v6e) over
# 256 chips, 50 Gbit/s a chip for v5p. Nothing is documented for v4, so v5p's figure is taken. `hbm`
# is the figure of libtpu's compiler.
CHIPS = {
    "v4": Chip(
        flops=275e12,
        hbm=int(30.75 * _GIB),
        hbm_speed=1200e9,
        ici_speed=2400 * _GBIT,
        dcn_speed=50 * _GBIT,
        shapes=_cubes(4096),
        accelerator="v4",
        cores=2,
        # Both cores of a chip as one device, as on a real v4.
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(
        flops=197e12,
        hbm=int(15.75 * _GIB),
        hbm_speed=819e9,
        ici_speed=1600 * _GBIT,
        dcn_speed=25 * _GBIT,
        shapes=_FLAT,
        accelerator="v5litepod",
    ),
    "v5p": Chip(
        flops=459e12,
        hbm=int(95.74 * _GIB),
        hbm_speed=2765e9,
        ici_speed=4800 * _GBIT,
        dcn_speed=50 * _GBIT,
        shapes=_cubes(6144),
        accelerator="v5p",
        cores=2,
    ),
    "v6e": Chip(
        flops=918e12,
        hbm=int(31.25 * _GIB),
        hbm_speed=1640e9,
        ici_speed=3584 * _GBIT,
        dcn_speed=100 * _GBIT,
        shapes=_FLAT,
        accelerator="v6e",
    ),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several slices of one shape."""

    generation: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        """The generation of its chips."""
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        """Chips of all slices together."""
        return math.prod(self.shape) * self.slices

    @property
    def name(self) -> str:
        """As in `parse`."""
        return f"{self.generation}:{_written(self.shape)}"

    @property
    def accelerator_type(self) -> str:
        """gcloud's name of one slice: `v5litepod-256`, `v5p-256` (128 chips of two cores)."""
        return f"{self.chip.accelerator}-{math.prod(self.shape) * self.chip.cores}"


def parse(name: str, slices: int = 1) -> Topology:
    """The topology of a name such as `v5e:16x16`.

    Raises:
      ValueError: there is no such slice; the message lists those that exist.
    """
    generation, _, shape = name.partition(":")
    if generation not in CHIPS:
        accepted = ", ".join(f"{g}:{_written(c.shapes[-1])}" for g, c in CHIPS.items())
        raise ValueError(f"topology {name!r}: must be a generation and a shape, such as {accepted}")
    shapes = CHIPS[generation].shapes
    for each in shapes:
        if _written(each) == shape:
            if slices < 1:
                raise ValueError(f"slices must be at least 1, not {slices}")
            return Topology(generation, each, slices)
    if len(shapes[0]) == 2:
        accepted = ", ".join(map(_written, shapes))
    else:
        parts = [_written(each) for each in shapes if math.prod(each) <= 64]
        accepted = (
            f"{', '.join(parts)}, and AxBxC of multiples of 4 with A <= B <= C <= {_LONGEST_SIDE} "
            f"and at most {max(map(math.prod, shapes))} chips"
        )
    raise ValueError(f"topology {name!r}: slices of {generation} are {accepted}")


def devices(topology: Topology) -> list[jax.Device]:
    """Devices to compile for. Nothing can run on them. Call it before JAX makes any others.

    Raises:
      ImportError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            "libtpu, which holds the compiler for TPUs, is not installed: it is in the extra `tpu` "
            "(pip install 'mdlm_jax[tpu]')"
        )
    # libtpu reads these when it is loaded: there is no TPU and no other process, and its compiler
    # reports on stderr.
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE=topology.accelerator_type,
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_STDERR_LOG_LEVEL="0",
        TPU_MIN_LOG_LEVEL="0",
    )
    jax.config.update("jax_platforms", "cpu")
    options = dict(topology.chip.options)
    if math.prod(topology.shape) == 1:
        options["chips_per_host_bounds"] = [1] * 3  # libtpu assumes hosts of four chips
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    return topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **options
    ).devices


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
