"""The programs of an experiment, compiled ahead of time for TPUs: their memory and traffic."""

import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mdlm_jax.diffusion import strategies
from mdlm_jax.host import parallel
from mdlm_jax.pods import flops, hlo_report
from mdlm_jax.pods.topologies import Topology
from mdlm_jax.runs.experiment import SCHEDULES
from mdlm_jax.runs.program import Program
from mdlm_jax.runs.sampler import Method, make_writer
from mdlm_jax.runs.shaping import Shaping

_REMATERIALIZATION = "Involuntary full rematerialization"
_SMALLEST_GRADIENT = 2**20  # elements: a gradient below that may be summed in any way


def check_step(program: Program, topology: Topology) -> dict[str, Any]:
    """Compiles the training step and returns its report, ready for JSON."""
    state, encoder = program.abstract_state(), program.encoder
    training, length = program.experiment.training, program.experiment.data.length
    memory = {
        "parameters": _bytes_a_chip(state.params),
        "optimizer": _bytes_a_chip(state.opt_state),
        "moving average": _bytes_a_chip(state.ema),
    }
    blocks = program.experiment.family.blocks(program.experiment.objective)
    in_blocks = None if blocks is None else blocks.size
    work = flops.training_step(encoder, training.batch_size, length, _slots(program), in_blocks)
    checked = _compile(program, topology, program.step, state, program.abstract_batch())
    # Every part of the state is read and written once.
    moved = 2 * sum(memory.values())
    return _tell(checked, topology, memory, sum(work), moved) | {"model_flops": work.model}


def check_sampler(program: Program, topology: Topology) -> dict[str, Any]:
    """Compiles the sampler, with a canvas of `evaluation.batch_size` rows or one row a device.

    The data decide when its loop ends, so work and collectives are reported for one of the
    `evaluation.sample_steps` network evaluations.
    """
    settings, length = program.experiment.evaluation, program.experiment.data.length
    shards = parallel.row_shards(program.mesh)
    rows = -(-settings.batch_size // shards) * shards
    family, objective = program.experiment.family, program.experiment.objective
    in_blocks = family.blocks(objective)
    method = Method(
        strategies.exact_count(schedule=SCHEDULES[program.experiment.objective.schedule]()),
        Shaping(),
        steps=settings.sample_steps,
        in_blocks=in_blocks,
    )
    write = make_writer(program.encoder, program.mesh, method)
    params = program.abstract_state().params
    memory = {"parameters": _bytes_a_chip(params)}
    steps = settings.sample_steps
    if in_blocks is None:
        work = flops.sampler(program.encoder, rows, length, steps) / steps
    else:
        work = flops.of_block(program.encoder, rows, length, in_blocks.size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    canvas, strengths = _canvas(program, rows), method.strengths()
    checked = _compile(program, topology, write, params, key, canvas, steps, strengths)
    report = _tell(checked, topology, memory, work, memory["parameters"])
    return report | {"rows": rows, "evaluations": steps}


def _canvas(program: Program, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of the sampler as shapes, as training shows it."""
    sharding = parallel.batch_sharding(program.mesh)
    tokens = (rows, program.experiment.data.length)
    shapes = {"tokens": (tokens, "int32"), "fill": (tokens, "bool"), "number": ((rows,), "int32")}
    if program.experiment.data.has_padding:
        shapes["valid"] = (tokens, "bool")
    if program.encoder.classes:
        shapes["label"] = ((rows,), "int32")
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def _compile(program: Program, topology: Topology, function, *arguments) -> dict:
    """Compiles, and returns what the compiler says and the program."""
    start = time.monotonic()
    error = compiled = None
    with stderr_of_compiler() as said:
        try:
            compiled = function.lower(*arguments).compile()
        except jax.errors.JaxRuntimeError as raised:
            if "RESOURCE_EXHAUSTED" not in str(raised):
                raise
            error = str(raised)
    checked = {"compile_seconds": round(time.monotonic() - start, 1), "errors": [], "warnings": []}
    for line in dict.fromkeys(said):
        if _REMATERIALIZATION in line:
            checked["errors"].append(rematerialized(line))
    if error is not None:
        checked["overflow"] = error
        return checked
    analysis = compiled.memory_analysis()
    checked["temporary_bytes"] = analysis.temp_size_in_bytes
    checked["code_bytes"] = analysis.generated_code_size_in_bytes
    checked["collectives"] = hlo_report.collectives(compiled.as_text(), topology.slices)
    checked["warnings"] += _whole_gradients(program, checked["collectives"])
    return checked


def _tell(
    checked: dict,
    topology: Topology,
    memory: dict[str, int],
    work: float,
    moved: float,
) -> dict[str, Any]:
    """The report of one program."""
    chip = topology.chip
    report = {
        "fits": "overflow" not in checked,
        "hbm_bytes": chip.hbm,
        "memory_bytes": dict(memory),
        "flops": work,
        "flops_a_chip": work / topology.chips,
        "compile_seconds": checked["compile_seconds"],
        "errors": list(checked["errors"]),
        "warnings": checked["warnings"],
    }
    least = {"compute": work / topology.chips / chip.flops, "memory": moved / chip.hbm_speed}
    if report["fits"]:
        report["memory_bytes"]["gradients, activations, buffers"] = checked["temporary_bytes"]
        report["memory_bytes"]["code"] = checked["code_bytes"]
        found = checked["collectives"]
        between = sum(each.received for each in found if each.between_slices)
        within = sum(each.received for each in found if not each.between_slices)
        least["links between chips"] = within / chip.ici_speed
        if topology.slices > 1:
            least["network between slices"] = between / chip.dcn_speed
        report["collectives"] = _by_kind(found)
        report["largest_collectives"] = [
            each._asdict() | {"received_bytes": each.received} for each in found[:5]
        ]
    else:
        report["needed_bytes"] = size = needed(checked["overflow"])
        wants = f"needs {size / 2**30:.2f} GiB a chip" if size else "needs more memory"
        report["errors"].insert(
            0, f"does not fit: {wants}, and {chip.hbm / 2**30:.2f} GiB are there"
        )
        report["compiler"] = checked["overflow"]
    report["least_seconds"] = least
    return report


def _by_kind(found: list[hlo_report.Collective]) -> dict[str, dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = {}
    for each in found:
        name = f"{each.kind}, slices" if each.between_slices else each.kind
        kind = kinds.setdefault(
            name, {"operations": 0, "times": 0, "received_bytes": 0.0, "bounded": True}
        )
        kind["operations"] += 1
        kind["times"] += each.times
        kind["received_bytes"] += each.received
        kind["bounded"] &= each.bounded
    return kinds


def _whole_gradients(program: Program, found: list[hlo_report.Collective]) -> list[str]:
    """All-reduces as large as a parameter that fsdp shards: a reduce-scatter sends half of it."""
    if program.mesh.shape["fsdp"] == 1:
        return []
    whole = {}
    shardings = jax.tree.leaves(program.shardings.params)
    for (path, leaf), sharding in zip(
        jax.tree.leaves_with_path(program.shapes), shardings, strict=True
    ):
        if "fsdp" not in sharding.spec:
            continue
        size = int(np.prod(sharding.shard_shape(leaf.shape))) * program.mesh.shape["fsdp"]
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        whole.setdefault(size, name)
        if "/blocks/" in name:
            whole.setdefault(size // program.encoder.layers, f"{name}, one layer")
    warnings = []
    for each in found:
        if each.kind != "all-reduce" or each.between_slices:
            continue
        for dtype, shape in each.shapes:
            size = int(np.prod(shape))
            if size >= _SMALLEST_GRADIENT and size in whole:
                times = f" {each.times} times" if each.times > 1 else ""
                warnings.append(
                    f"an array as large as the gradient of {whole[size]} ({dtype}{list(shape)}) "
                    f"is summed whole on every chip{times}, where a part each (reduce-scatter) "
                    "would do"
                )
    return list(dict.fromkeys(warnings))


def _slots(program: Program) -> int:
    """The number of positions of the global batch that are read out."""
    batch = jax.eval_shape(program.prepare, jax.random.key(0), 0, program.abstract_batch())
    return batch["corrupted"].positions.size


def _bytes_a_chip(tree: Any) -> int:
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def needed(error: str) -> int | None:
    """The bytes a chip that the compiler says the program would need."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    report = re.search(r"Used ([\d.]+)([KMGT]) of|temporaries \(([\d.]+)([KMGT])\)", error)
    if report is None:
        return None
    number, unit = report[1] or report[3], report[2] or report[4]
    return int(float(number) * units[unit])


def rematerialized(line: str) -> str:
    """The compiler's message, shorter."""
    found = re.search(
        r"cannot go from sharding (.*?) to (.*?) efficiently for HLO operation (.*)", line
    )
    if found is None:
        return f"{_REMATERIALIZATION}: {line}"
    operation = re.match(r"(%\S+ = [^{\s]*)", found[3])
    source = re.search(r'op_name="([^"]*)"', found[3])
    of = f" of {source[1]}" if source else ""
    return (
        f"{_REMATERIALIZATION}: {operation[1] if operation else found[3][:80]}{of} is copied whole "
        f"to every chip to go from {found[1]} to {found[2]}"
    )


@contextlib.contextmanager
def stderr_of_compiler() -> Iterator[list[str]]:
    """Captures stderr, also of libraries; afterwards its lines are in the list."""
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += file.read().decode("utf-8", "replace").splitlines()
