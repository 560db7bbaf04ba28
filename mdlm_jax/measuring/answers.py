"""`evaluate --answers`: how the answers of a run on pairs compare with the responses."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh

from mdlm_jax import data
from mdlm_jax.diffusion import Strategy
from mdlm_jax.evaluation.samples import answers, bertscore, features
from mdlm_jax.host import command_line, paths
from mdlm_jax.measuring import frontier, points
from mdlm_jax.pages import answers_table
from mdlm_jax.pages.frontier_table import heads, line
from mdlm_jax.runs import workdir
from mdlm_jax.runs.sampler import Method
from mdlm_jax.runs.shaping import Shaping
from mdlm_jax.writing import canvases, filling, prompts

FLAGS = ("strategies", "steps", "samples", "features")  # shared with the frontier

_STRATEGIES = "exact_count; greedy"
_SCORED = 256  # rows whose states are held at a time


def measure(
    folder: epath.Path,
    *,
    split: str,
    weights: str,
    step: str | None,
    seed: int,
    batch_size: int,
    mesh: Mesh,
) -> int:
    """Measures the answers of a run by the flags, prints and writes. Returns the exit code."""
    with command_line.bad_input():
        grid = points.Grid(samples=flags.FLAGS.samples, steps=frontier.values("steps", int))
        trained = workdir.load(folder, weights=weights, step=step, mesh=mesh)
        _check(trained, folder)
        paths.check_output(folder / "answers.json")
        strategies = frontier.strategies_of(trained, _STRATEGIES)
        similarity = _similarity(trained, batch_size, mesh)
        rows = workdir.load_data(trained, folder).splits[split].spread(grid.samples)
        separator = data.special_ids(trained.tokenizer).sep
        wanted = answers.responses(rows.tokens, rows.prompts, separator)
        another = answers.another(wanted, seed)
    record: dict[str, Any] = {
        "split": split,
        "step": trained.step,
        "weights": weights,
        "features": flags.FLAGS.features or None,
        "seed": seed,
        "batch_size": batch_size,
        "device": jax.devices()[0].device_kind,
        "devices": mesh.size,
        "itself": answers.describe(wanted, wanted, separator, similarity),
        "another": answers.describe(another, wanted, separator, similarity),
        "points": [],
    }
    path = folder / "answers.json"
    table = answers_table.table(list(strategies))
    print(
        f"{len(rows):,} rows of the {split} split, answered by the {weights} weights of step "
        f"{trained.step}"
    )
    print(heads(table))
    print(line(table, {"strategy": answers_table.ITSELF, **record["itself"]}))
    print(line(table, {"strategy": answers_table.ANOTHER, **record["another"]}), flush=True)
    answer = _make_answer(trained, mesh, rows, seed, batch_size)
    for spec, strategy in strategies.items():
        for method in (_method(trained, strategy, steps, separator) for steps in grid.steps):
            filled, evaluations = answer(method)
            written = answers.responses(filled, rows.prompts, separator)
            point = {
                "strategy": spec,
                "steps": method.steps,
                **answers.describe(written, wanted, separator, similarity),
                "evaluations": evaluations,
            }
            record["points"].append(point)
            paths.write(path, json.dumps(record, indent=2) + "\n")  # finished points survive a stop
            print(line(table, point), flush=True)
    print(answers_table.FOOT.format(encoder=record["features"] or "the run itself"))
    print(f"written: {path}")
    return 0


def _check(trained: workdir.Trained, folder: epath.Path) -> None:
    if trained.family.is_causal:
        raise ValueError(
            f"{folder} was trained autoregressively: it fills no masks, which --answers is of"
        )
    if prompts.asking(workdir.data_card(folder), trained.tokenizer) is None:
        raise ValueError(
            f"{folder} was not trained on pairs of a prompt and a response: --answers needs such a "
            "run (data.prompt_field or data.messages_field)"
        )


def _method(trained: workdir.Trained, strategy: Strategy, steps: int, separator: int) -> Method:
    """As `generate` answers a prompt."""
    return Method(
        strategy=strategy,
        shaping=Shaping(),
        steps=steps,
        end_id=separator,
        pad_id=separator,
        in_blocks=trained.family.blocks(trained.objective),
    )


def _make_answer(
    trained: workdir.Trained,
    mesh: Mesh,
    rows: data.Rows,
    seed: int,
    batch_size: int,
) -> Callable[[Method], tuple[np.ndarray, float]]:
    """Answers the prompts of rows: i32[N, L], and the mean of the evaluations."""
    wanted = rows.maskable
    tokens = np.where(wanted, trained.encoder.mask_id, rows.tokens).astype(np.int32)

    def answer(method: Method) -> tuple[np.ndarray, float]:
        batches = filling.fill(
            trained.params,
            trained.encoder,
            mesh,
            method,
            canvases.Canvas(tokens=tokens, fill=wanted, shown=wanted, maskable=wanted),
            labels=rows.labels if trained.encoder.classes else None,
            batch_size=batch_size,
            seed=seed,
        )
        filled = [row for batch in batches for row in batch]
        evaluations = float(np.mean([row.evaluations for row in filled]))
        return np.stack([row.tokens for row in filled]), evaluations

    return answer


def _similarity(trained: workdir.Trained, batch_size: int, mesh: Mesh) -> answers.Similarity:
    """BERTScore by the encoder of --features, by default the run's own."""
    other = flags.FLAGS.features
    theirs = workdir.load(epath.Path(other), mesh=mesh) if other else trained

    def states(rows: data.Rows) -> tuple[data.Rows, np.ndarray]:
        longest = theirs.encoder.max_length
        read = features.reencode(rows, trained.tokenizer, theirs.tokenizer, longest)
        return read, features.of_tokens(
            theirs.params, theirs.encoder, read, batch_size=batch_size, mesh=mesh
        )

    def similarity(candidates: data.Rows, references: data.Rows) -> bertscore.BertScore:
        parts = [slice(first, first + _SCORED) for first in range(0, len(references), _SCORED)]
        scores = [
            bertscore.score(*states(candidates[part]), *states(references[part])) for part in parts
        ]
        return bertscore.BertScore(*map(np.concatenate, zip(*scores, strict=True)))

    return similarity
