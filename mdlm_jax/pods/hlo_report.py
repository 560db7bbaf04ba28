"""The network traffic of a compiled program, read from its text.

Operations of one kind and channel count as one collective. (The TPU compiler copies one operation
into several computations, to run it beside others.) Within a loop it counts as often as the loop
runs, if the program states the number of iterations, and otherwise once.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = {"pred": 8, "bf16": 16}  # other types end in their number of bits


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
      kind: as in HLO.
      shapes: of its results, `("bf16", (768, 3072))`; of a reduce-scatter, of its operands.
      times: how often it runs in one run of the program.
      bounded: False if a loop around it does not state how often it runs.
      group: devices that take part together.
      between_slices: whether the devices are one of each slice, at the same place.
      source: the operation that it belongs to.
    """

    kind: str
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    bounded: bool
    group: int
    between_slices: bool
    source: str

    @property
    def size(self) -> int:
        """Bytes of all shapes."""
        return sum(_bits(dtype) * math.prod(shape) // 8 for dtype, shape in self.shapes)

    @property
    def received(self) -> float:
        """The least number of bytes that one device receives in all runs."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return self.times * self.size
        # An all-reduce is a reduce-scatter and an all-gather.
        rounds = 2 if self.kind == "all-reduce" else 1
        return self.times * rounds * self.size * (self.group - 1) / self.group


class _Computation(NamedTuple):
    name: str
    lines: list[str]


def collectives(text: str, slices: int = 1) -> list[Collective]:
    """The collectives of a compiled program in which several devices take part.

    Args:
      text: `compiled.as_text()`.
      slices: slices that the program runs on. Traffic between slices is no collective in the text:
        the compiler turns each into one within the slices and a send to the runtime.
    """
    computations = {each.name: each for each in _computations(text)}
    entry = next(name for name in computations if name.startswith("ENTRY "))
    runs = _runs(computations, entry)
    found: dict[tuple[str, bool, str], Collective] = {}
    for name, (times, bounded) in runs.items():
        for line in computations[name].lines:
            match = _INSTRUCTION.match(line)
            if match and match["kind"] == "send" and _MEGASCALE in line:
                made = _between_slices(match, line, times, bounded, slices)
            elif match and match["kind"] in _KINDS:
                made = _collective(match, line, name, times, bounded)
            else:
                continue
            channel = re.search(r"channel_id=(\d+)", line)
            # Operations of different kinds may share a number.
            key = made.kind, made.between_slices, channel[1] if channel else match["name"]
            if made.group > 1 and (key not in found or found[key].times < times):
                found[key] = made
    return sorted(found.values(), key=lambda each: -each.received)


_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<kind>[a-z-]+?)(?:-start)?\("
)


_MEGASCALE = '_xla_host_transfer_handler_name="xla_megascale_runtime"'


def _between_slices(match, line, times, bounded, slices) -> Collective:
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', line)
    return Collective(
        kind=transfer[1].lower().replace("_", "-") if transfer else "send",
        shapes=tuple(_shapes(match["type"]))[:1],  # then its number
        times=times,
        bounded=bounded,
        group=slices,
        between_slices=True,
        source=_source(line),
    )


def _source(line: str) -> str:
    match = re.search(r'op_name="([^"]*)"', line)
    return match[1] if match else ""


def _collective(match, line, computation, times, bounded) -> Collective:
    kind = match["kind"]
    shapes = tuple(_shapes(match["type"]))
    if kind == "all-reduce" and "all-reduce-scatter" in computation:
        kind = "reduce-scatter"  # how the TPU compiler writes one
    elif kind == "reduce-scatter":
        shapes = tuple(_shapes(line[match.end() :].split("), ")[0])) or shapes
    return Collective(
        kind=kind,
        shapes=shapes,
        times=times,
        bounded=bounded,
        group=len(_groups(line)[0]),
        between_slices=False,
        source=_source(line),
    )


def _computations(text: str) -> Iterator[_Computation]:
    current = None
    for line in text.splitlines():
        if current is None:
            header = re.match(r"(ENTRY )?%?([\w.-]+) \(", line)
            if header and line.endswith("{"):
                current = _Computation((header[1] or "") + header[2], [])
        elif re.match(r"}(?!})", line):  # a kernel's metadata may spread over lines that begin }}
            yield current
            current = None
        else:
            current.lines.append(line)


def _runs(computations: dict[str, _Computation], entry: str) -> dict[str, tuple[int, bool]]:
    """How often each computation runs, and whether every loop around it states its iterations."""
    runs = {entry: (1, True)}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        times, bounded = runs[name]
        for line in computations[name].lines:
            trips = _trips(line, computations) if " while(" in line else 1
            for called in _called(line):
                inside = times * (trips or 1), bounded and trips is not None
                if called in computations and (called not in runs or runs[called][0] < inside[0]):
                    runs[called] = inside
                    waiting.append(called)
    return runs


def _called(line: str) -> list[str]:
    names = re.findall(
        r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.-]+)", line
    )
    for several in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", line):
        names += [name.strip().lstrip("%") for name in several.split(",")]
    return names


def _trips(line: str, computations: dict[str, _Computation]) -> int | None:
    """Iterations of a `while`: as the compiler states, or what its counter is compared with."""
    known = re.search(r'known_trip_count":?\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = computations[condition[1]].lines if condition else []
    constants = dict(
        match.groups()
        for each in lines
        if (match := re.match(r"\s+%?([\w.-]+) = s32\[\]\S* constant\((\d+)\)", each))
    )
    root = next((each for each in lines if "ROOT" in each), "")
    compared = re.search(r"compare\(%?[\w.-]+, %?([\w.-]+)\), direction=LT", root)
    return int(constants[compared[1]]) if compared and compared[1] in constants else None


def _shapes(types: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for dtype, sizes in re.findall(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\]", types):
        yield dtype, tuple(int(size) for size in sizes.split(",") if size)


def _bits(dtype: str) -> int:
    return _BITS.get(dtype) or int(re.match(r"[a-z]+(\d+)", dtype)[1])


def _groups(line: str) -> np.ndarray | list[list[int]]:
    """The devices of each group, in any of the ways that HLO writes them."""
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", line)
    if pairs:
        return [_numbers(pair) for pair in re.findall(r"\{([\d, ]*)\}", pairs[1])]
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", line)
    if listed:
        return [_numbers(group) for group in re.findall(r"\{([\d, ]*)\}", listed[1])]
    tiled = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if tiled:
        return _tile(tiled[2], tiled[3]).reshape(_numbers(tiled[1]))
    # mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}: groups along y.
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
        r"\{([^}]*)\}",
        line,
    )
    if mesh is None:
        return [[0]]
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])}
    total = str(math.prod(sizes.values()))
    devices = _tile(mesh[2] or total, mesh[3]).reshape(tuple(sizes.values()))
    along = re.findall(r"'([^']+)'", mesh[4])
    inner = [i for i, name in enumerate(sizes) if name in along]
    outer = [i for i, name in enumerate(sizes) if name not in along]
    count = math.prod(devices.shape[i] for i in inner)
    return devices.transpose(outer + inner).reshape(-1, count)


def _tile(sizes: str, order: str | None) -> np.ndarray:
    shape = _numbers(sizes)
    devices = np.arange(math.prod(shape)).reshape(shape)
    return devices.transpose(_numbers(order)) if order else devices


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number.strip()]
