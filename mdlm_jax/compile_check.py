"""Compiles the training step and the sampler of a config for a TPU pod, without a TPU.

    python -m mdlm_jax.compile_check --config=bert_base_v5e --topology=v5e:4x4

It reports whether they fit into the chips' memory and what takes it, how much they compute and
send, and how long a step must take at least. Nothing is run and no data are needed. It needs a CPU,
2 to 10 GiB of memory, some minutes, and the extra `tpu`. Any key of the config can be changed:
--config.mesh.fsdp=8. Exit codes: 0 all well; 1 it does not fit, or the partitioner gave up on an
array and copies it whole to every chip; 2 bad input, nothing was compiled.
"""

import dataclasses
import importlib.metadata
import json
from typing import Any

import jax
from absl import flags

from mdlm_jax.host import command_line, parallel, paths
from mdlm_jax.pods import aot, topologies
from mdlm_jax.runs import following, starting
from mdlm_jax.runs.program import Program, make_program

_CONFIG = command_line.define_config()
_TOPOLOGY = flags.DEFINE_string("topology", None, "Generation and shape of a slice: v5e:16x16.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that shape; `data` is split over them.")
_JSON = command_line.define_path("json", None, "Also write all of it into this file.")
command_line.require("config", "topology")
flags.declare_key_flag("config")

_GIB = 2**30


def main() -> int:
    """Checks the programs of the flags, prints the reports, and returns the exit code."""
    with command_line.bad_input():
        topology = topologies.parse(_TOPOLOGY.value, _SLICES.value)
        chosen, given = command_line.chosen_config(_CONFIG), command_line.given_keys(_CONFIG)
        experiment, _ = following.experiment_of(chosen, given)
        _check_json()
        encoder = experiment.planned_encoder(starting.architecture(experiment.start))
        with aot.stderr_of_compiler():
            devices = topologies.devices(topology)
        mesh = parallel.make_mesh(**dataclasses.asdict(experiment.mesh), devices=devices)
        program = make_program(experiment, encoder, mesh, start_id=0)  # or any token
    report = _header(program, topology)
    print(_header_words(report), flush=True)
    checks = {"training step": aot.check_step, "sampler": aot.check_sampler}
    if experiment.family.is_causal:
        del checks["sampler"]  # which is of a model that fills masks
    for name, check in checks.items():
        report[name] = check(program, topology)
        print(_words(name, report[name]), flush=True)
    if _JSON.value:
        paths.write(_JSON.value, json.dumps(report, indent=1) + "\n")
    good = all(not report[name]["errors"] for name in checks)
    return 0 if good else 1


def _check_json() -> None:
    if _JSON.value:
        paths.check_output(_JSON.value, "--json", kinds=(".json",))


def _header(program: Program, topology: topologies.Topology) -> dict[str, Any]:
    training = program.experiment.training
    return {
        "topology": topology.name,
        "accelerator_type": topology.accelerator_type,
        "slices": topology.slices,
        "chips": topology.chips,
        "mesh": dict(program.mesh.shape),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.shapes)),
        "rows": training.batch_size,
        "length": program.experiment.data.length,
        "accumulation": training.accumulation,
        "jax": jax.__version__,
        "libtpu": importlib.metadata.version("libtpu"),
    }


def _header_words(report: dict[str, Any]) -> str:
    mesh = " ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
    slices = f"{report['slices']} slices of " if report["slices"] > 1 else ""
    parts = f" in {report['accumulation']} parts" if report["accumulation"] > 1 else ""
    return (
        f"{slices}{report['topology']} ({report['accelerator_type']}): {report['chips']:,} chips, "
        f"mesh {mesh}\n{report['parameters']:,} parameters, {report['rows']:,} rows of "
        f"{report['length']:,} tokens a step{parts}, jax {report['jax']}, libtpu {report['libtpu']}"
    )


def _words(name: str, report: dict[str, Any]) -> str:
    part = f", one of {report['evaluations']} evaluations" if "evaluations" in report else ""
    lines = [f"\n{name}{part}: {'fits' if report['fits'] else 'DOES NOT FIT'}"]
    total = sum(report["memory_bytes"].values()) if report["fits"] else report["needed_bytes"]
    lines.append("  memory of a chip" + " " * 26 + "GiB")
    for kind, size in report["memory_bytes"].items():
        lines.append(f"    {kind:<33}{_gib(size):>8}")
    if total:
        lines.append(f"    {'all, of ' + _gib(report['hbm_bytes']):<33}{_gib(total):>8}")
    if report.get("collectives"):
        lines.append("  collectives             times   GiB to a chip")
        for kind, each in report["collectives"].items():
            sign = "" if each["bounded"] else ">="
            lines.append(
                f"    {kind:<20}{sign + format(each['times'], ','):>9}"
                f"{_gib(each['received_bytes']):>12}"
            )
    lines.append(
        "  at the least takes         ms   "
        f"({report['flops']:.3g} FLOPs, {report['flops_a_chip']:.3g} a chip)"
    )
    bound = max(report["least_seconds"].values())
    for kind, seconds in report["least_seconds"].items():
        lines.append(
            f"    {kind:<23}{1000 * seconds:>8,.1f}" + ("   <" if seconds == bound else "")
        )
    lines.append(f"  compiled in {report['compile_seconds']:,.0f} s")
    lines += [f"  error: {error}" for error in report["errors"]]
    lines += [f"  warning: {warning}" for warning in report["warnings"]]
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / _GIB:,.2f}"


if __name__ == "__main__":
    command_line.run(main)
