"""Asks a trained model the questions of EleutherAI's lm-evaluation-harness.

    python -m mdlm_jax.harness --workdir=runs/mine --tasks=piqa,arc_easy --limit=100
    python -m mdlm_jax.harness --checkpoint=google-bert/bert-base-uncased --tasks=hellaswag

It prints the harness' table of results, and the error that drawing masks adds: a likelihood is a
bound, estimated from --draws corruptions. --include_path=FOLDER adds tasks of your own.
Needs pip install 'mdlm_jax[harness]'.
"""

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from mdlm_jax.host import command_line, compilation, distributed, paths
from mdlm_jax.runs import config_json

_WORKDIR = command_line.define_path("workdir", None, "Folder of the run.")
_CHECKPOINT = command_line.define_path(
    "checkpoint", None, "Instead of a run: folder of a Hugging Face checkpoint, or name of the hub."
)
_WEIGHTS = flags.DEFINE_enum("weights", None, ["ema", "params"], "Of a run: ema by default.")
_TASKS = flags.DEFINE_list("tasks", None, "Names of tasks, groups or tags, separated by commas.")
_INCLUDE_PATH = command_line.define_path("include_path", None, "Folder of tasks of your own.")
_LIMIT = flags.DEFINE_integer("limit", None, "Questions of each task; all by default.", 1)
_FEWSHOT = flags.DEFINE_integer("fewshot", None, "Solved examples in front of a question.", 0)
_DRAWS = flags.DEFINE_integer("draws", 32, "Corruptions of each row; more shrink the error.", 2)
_STEPS = flags.DEFINE_integer("steps", 64, "Network evaluations of a written answer.", 1, 100_000)
_STRATEGY = flags.DEFINE_string(
    "strategy", "greedy", "How answers are written, as generate --strategy takes it."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows at a time; changes no result.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", 0, 2**64 - 1)
_OUTPUT = command_line.define_path("output", None, "Write the results into this file, as JSON.")
command_line.require("tasks")

_KEPT = ("results", "groups", "versions", "n-shot", "n-samples")


def main() -> int:
    """Prints and writes the results, and returns the exit code."""
    with command_line.bad_input():
        _check_flags()
        lm_eval, adapter = _require_lm_eval()
        compilation.keep()
        asked = adapter.MaskedDiffusion(
            _WORKDIR.value or _CHECKPOINT.value,
            weights=_WEIGHTS.value,
            draws=_DRAWS.value,
            strategy=_STRATEGY.value,
            steps=_STEPS.value,
            batch_size=_BATCH_SIZE.value,
            seed=_SEED.value,
        )
        manager = lm_eval.tasks.TaskManager(include_path=_INCLUDE_PATH.value)
        # Whatever a task asks for is input, and comes to light only while it is asked.
        results = lm_eval.simple_evaluate(
            asked,
            tasks=_matching(manager),
            num_fewshot=_FEWSHOT.value,
            limit=_LIMIT.value,
            log_samples=False,
            task_manager=manager,
        )
    written = _settings(asked) | {name: results[name] for name in _KEPT if results.get(name)}
    for column in ("results", "groups"):
        if column in written:
            print(lm_eval.utils.make_table(results, column))
    print(_noise(written))
    if _OUTPUT.value:
        text = json.dumps(written, indent=2, default=lambda number: number.item())
        paths.write(_OUTPUT.value, text + "\n")
        print(f"written: {_OUTPUT.value}")
    return 0


def _check_flags() -> None:
    if bool(_WORKDIR.value) == bool(_CHECKPOINT.value):
        raise ValueError("give --workdir of a run, or --checkpoint, and not both")
    if _WORKDIR.value:
        config_json.find(epath.Path(_WORKDIR.value))
    if _INCLUDE_PATH.value and not Path(_INCLUDE_PATH.value).is_dir():
        raise ValueError(f"--include_path={_INCLUDE_PATH.value}: there is no such folder")
    if _OUTPUT.value:
        paths.check_output(_OUTPUT.value, "--output", kinds=(".json",))
    if given := [name for name in distributed.VARIABLES if os.environ.get(name)]:
        raise ValueError(f"{', '.join(given)} set: the harness runs in one process, on its devices")


def _require_lm_eval() -> tuple[ModuleType, ModuleType]:
    """`lm_eval`, and the module that registers our model there."""
    try:
        import lm_eval.tasks
        import lm_eval.utils
    except ImportError as error:
        raise ImportError(f"{error.name} is needed: pip install 'mdlm_jax[harness]'") from None
    from mdlm_jax.measuring import lm_eval_adapter

    return lm_eval, lm_eval_adapter


def _matching(manager: Any) -> list[str]:
    """The tasks that are asked for; a name may be a pattern, such as `mmlu_*`."""
    if unknown := [name for name in _TASKS.value if not manager.match_tasks([name])]:
        raise ValueError(
            f"--tasks: there is no task {unknown[0]!r}; `lm_eval ls tasks` lists those of the "
            "harness, --include_path=FOLDER adds your own"
        )
    return manager.match_tasks(_TASKS.value)


def _settings(asked: Any) -> dict[str, Any]:
    """The settings that the results depend on, and the error from drawing masks."""
    answerer, errors = asked.answerer, np.array(asked.errors)
    return {
        "model": _WORKDIR.value or _CHECKPOINT.value,
        "weights": answerer.model.weights,
        "step": answerer.model.step,
        "draws": answerer.draws,
        "strategy": answerer.strategy,
        "steps": answerer.steps,
        "seed": answerer.seed,
        "limit": _LIMIT.value,
        "continuations": len(errors),
        "mean_error": float(errors.mean()) if len(errors) else None,
        "largest_error": float(errors.max()) if len(errors) else None,
        "cut_contexts": asked.cut,
        "unscored": asked.unscored,
    }


def _noise(made: dict[str, Any]) -> str:
    if not made["continuations"]:
        return "no continuation was scored"
    line = (
        f"{made['continuations']:,} continuations, {made['draws']} draws at the most: standard "
        f"error {made['mean_error']:.3f} nats in the mean, {made['largest_error']:.3f} at the most"
    )
    if made["cut_contexts"]:
        line += f"; {made['cut_contexts']:,} lost the start of their context, for want of room"
    if made["unscored"]:
        line += f"; {made['unscored']:,} others could not be scored and count as impossible"
    return line


if __name__ == "__main__":
    command_line.run(main)
