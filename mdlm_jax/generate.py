"""Writes text, or fills the gaps of prompts, with a trained model.

    python -m mdlm_jax.generate --workdir=runs/quickstart --prompt "The city of [MASK] [MASK]"

Every [MASK] of a prompt is one token to be filled, and {mask:12} is twelve. The text behind the
prompt is unknown and stays masked for the model. Without a prompt a whole row is written from masks
alone. More --steps give better text; with one step BERT fills all masks at once.

    python -m mdlm_jax.generate --checkpoint=google-bert/bert-base-uncased \
        --prompt "The capital of France is [MASK]."

Any BERT of Hugging Face fills gaps too: a prompt stands between its [CLS] and [SEP].

A run that was trained on pairs of a prompt and a response answers a prompt without a gap, and
must be given one.

--watch replays how the text was written, and --html=FILE writes the replay as a page.
--prompts=FILE takes many prompts (a line each, or JSONL with "prompt" or "messages").
--output=FILE writes one JSON object a sample, and continues behind the last line when it is started
again. Rows are spread over all devices, and over several processes that are started as for
training.
"""

import contextlib
import dataclasses
import hashlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mdlm_jax.data import progress, reading
from mdlm_jax.host import command_line, distributed, endings, host_memory, paths
from mdlm_jax.runs import models, workdir
from mdlm_jax.runs.sampler import Method
from mdlm_jax.runs.shaping import Shaping
from mdlm_jax.writing import canvases, decoding, filling, prompts, requests, sample_files

_WORKDIR = command_line.define_path("workdir", None, "Folder of the run.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "Instead of --workdir: a folder of Hugging Face or a name of its hub, any BERT with its "
    "masked-LM head.",
)
_PROMPTS = flags.DEFINE_multi_string(
    "prompt", [], "Text with gaps, or to be answered; may be given several times."
)
_FILE = command_line.define_path(
    "prompts",
    None,
    'File of prompts: a line each, or .jsonl (.ndjson) with "prompt" or "messages", and perhaps a '
    '"label"; the names that the fields had in training will do, too.',
)
_SAMPLES = flags.DEFINE_integer("samples", 1, "Samples of each prompt.", 1)
_STEPS = flags.DEFINE_integer("steps", 64, "Network evaluations at the most.", 1, 100_000)
_STRATEGY = flags.DEFINE_string(
    "strategy",
    "exact_count",
    "What is written in each step, as a name or with arguments: threshold(0.9), remask(cap, 0.04)."
    f"\n{decoding.listing()}",
)
_BLOCKS = flags.DEFINE_integer(
    "blocks", 1, "Parts of the text that are filled one after the other, left to right.", 1
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "Below 1 takes likely tokens more often, 0 the most likely only."
)
_TOP_K = flags.DEFINE_integer("top_k", None, "Draws among so many tokens, the most likely ones.")
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Draws among the fewest tokens that hold so much of the probability (a nucleus)."
)
_MIN_P = flags.DEFINE_float(
    "min_p", 0.0, "Draws among the tokens at least so many times as likely as the likeliest."
)
_REPETITION_PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "Above 1 makes tokens that stand in the row less likely."
)
_FORBID = flags.DEFINE_multi_string(
    "forbid", [], 'A token that is never written, such as "[UNK]"; may be given several times.'
)
_LABEL = flags.DEFINE_string("label", None, "Of a model with classes: what the text is about.")
_GUIDANCE = flags.DEFINE_float(
    "guidance",
    None,
    "Weight of classifier-free guidance by the label: 1 is none, above 1 keeps closer to it. It "
    "evaluates the network twice a step.",
)
_END_OF_TEXT = flags.DEFINE_bool(
    "end_of_text",
    None,
    "The separator between texts ends a text; what the model writes behind it is dropped. By "
    "default where a prompt is answered.",
)
_LENGTH = flags.DEFINE_integer(
    "length",
    None,
    "Tokens of a row, at most as many as the model takes; as in training by default.",
)
_CACHE = flags.DEFINE_enum(
    "cache",
    None,
    ["prefix", "dual", "vicinity"],
    "Keeps keys and values from step to step, which is faster and an approximation. Computed anew "
    "are the block at hand (dual; give --blocks), all that follows it too (prefix), or also its "
    "neighbours (vicinity).",
)
_REFRESH = flags.DEFINE_integer(
    "refresh", None, "Of a cache: steps from one look at the whole row to the next. Default: 8.", 1
)
_AROUND = flags.DEFINE_integer(
    "around", None, "Of --cache=vicinity: positions on both sides of a block. Default: 16.", 1
)
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params"], "Averaged or raw weights.")
_STEP = command_line.define_step()
_SEED = flags.DEFINE_integer("seed", 0, "Another seed is another text.", 0, 2**64 - 1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    32,
    "Rows at a time, rounded up to what the devices share evenly; changes no sample.",
    1,
)
_MESH = flags.DEFINE_string(
    "mesh",
    "data=-1",
    "Devices along data (rows), fsdp (rows and weights) and tensor (layers), such as "
    "fsdp=4,tensor=2; -1 is the rest. Changes no sample but by rounding.",
)
_WATCH = flags.DEFINE_bool("watch", False, "Replay on the terminal how the text came to be.")
_HTML = command_line.define_path("html", None, "Write that as a page into this file.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object a sample.")
_OUTPUT = command_line.define_path("output", None, "Write one JSON object a sample into this file.")
_SAVE = flags.DEFINE_bool(
    "save", False, "Also write samples.txt, samples.json and report.html into the workdir."
)

_OPTIONS = [field.name for field in dataclasses.fields(requests.Options)]


class Job(NamedTuple):
    """The checked request.

    Attributes:
      model: on the mesh.
      mesh: of all devices.
      prompts: each with its label.
      canvas: a row of each prompt.
      labels: i32[N], the index of each label, -1 for none.
      method: how the canvas is filled.
      settings: the fields of every record, from the flags.
    """

    model: models.Model
    mesh: Mesh
    prompts: list[prompts.Prompt]
    canvas: canvases.Canvas
    labels: np.ndarray
    method: Method
    settings: dict[str, Any]


def main() -> int:
    """Fills the prompts of the flags, shows the result, and returns the exit code."""
    with command_line.bad_input():
        command_line.join_job()
        with distributed.failing_together():
            _check_flags()
            mesh = filling.make_mesh(_MESH.value)
        model, card = _load(mesh)
        with distributed.failing_together():
            job = _plan(model, mesh, card)
        distributed.require_same("what is asked for", _fingerprint(job))
        with distributed.failing_together():
            done = _begin_output(job)
        console = rich.console.Console(highlight=False, markup=False)

    host_memory.keep_freed()
    try:
        samples = _write(job, done)
    except BrokenPipeError:  # of --output or of what is printed
        return command_line.NOT_READ
    if jax.process_index() != 0:
        return 0
    if _OUTPUT.value:
        total = len(job.prompts) * _SAMPLES.value
        line = f"{_OUTPUT.value}: {total:,} samples, {total - done:,} of them new"
        # Not among the samples, where they are printed.
        print(line, file=sys.stderr if paths.is_stream(_OUTPUT.value) else sys.stdout)
    if _WATCH.value:
        from mdlm_jax.pages.watch import watch

        watch(samples, console)
    written = [sample_files.write_page(Path(_HTML.value), samples)] if _HTML.value else []
    if _SAVE.value:
        written += sample_files.write_into(epath.Path(_WORKDIR.value), samples)
    for path in written:
        console.print(f"written: {path}", soft_wrap=True)
    return 0


def _check_flags() -> None:
    if _WORKDIR.value and _CHECKPOINT.value:
        raise ValueError("--workdir and --checkpoint exclude each other")
    if not (_WORKDIR.value or _CHECKPOINT.value):
        raise ValueError("--workdir is required, or --checkpoint")
    if _STEP.value is not None and not _WORKDIR.value:
        raise ValueError("--step is of a run, by --workdir")
    if _SAVE.value and not _WORKDIR.value:
        raise ValueError("--save writes into --workdir, which is not given")
    if _PROMPTS.value and _FILE.value:
        raise ValueError("--prompt and --prompts exclude each other")
    shown = [name for name in ("watch", "json", "output") if flags.FLAGS[name].value]
    if len(shown) > 1:
        raise ValueError(f"--{shown[0]} and --{shown[1]} exclude each other")
    if _OUTPUT.value and (_HTML.value or _SAVE.value):
        raise ValueError("--output excludes --html and --save, which are for few samples")
    if _OUTPUT.value:
        paths.check_output(_OUTPUT.value, "--output")
    if _HTML.value:
        paths.check_output(_HTML.value, "--html", kinds=(".html", ".htm"))
    if _SAVE.value:
        sample_files.check_writable(epath.Path(_WORKDIR.value))


def _load(mesh: Mesh) -> tuple[models.Model, dict[str, Any]]:
    """The model of the flags, and the contents of a run's `data.json`."""
    if _CHECKPOINT.value:
        if (reading.path(_CHECKPOINT.value) / "checkpoints").is_dir():
            raise ValueError(f"--checkpoint={_CHECKPOINT.value} is a run: give it by --workdir")
        weights = _WEIGHTS.value if flags.FLAGS["weights"].present else None
        return models.load(_CHECKPOINT.value, mesh, weights=weights), {}
    folder = epath.Path(_WORKDIR.value)
    trained = workdir.load(folder, weights=_WEIGHTS.value, step=_STEP.value, mesh=mesh)
    return models.of_run(trained, _WEIGHTS.value), workdir.data_card(folder)


def _plan(model: models.Model, mesh: Mesh, card: dict[str, Any]) -> Job:
    """Checks the request, before anything is compiled."""
    asking = prompts.asking(card, model.tokenizer)
    fields = prompts.fields(card, labels=bool(model.encoder.classes))
    asked = prompts.asked(_PROMPTS.value, _FILE.value, asking, fields)
    asked = [p if p.label is not None else p._replace(label=_LABEL.value) for p in asked]
    options = {name: _given(name) for name in _OPTIONS if flags.FLAGS[name].present}
    try:
        request = requests.plan(
            model,
            asked,
            requests.Options(**options),
            asking=asking,
            label_names=_label_names() if model.encoder.classes else (),
        )
    except ValueError as error:  # which perhaps begins with the name of a flag
        flag = re.match(r"\w+", str(error))
        raise ValueError(f"--{error}" if flag and flag[0] in _OPTIONS else str(error)) from None
    method = request.method
    settings = {"strategy": request.strategy, "steps": method.steps}
    settings |= _settings(model, method.shaping)
    settings |= {"end_of_text": True} if method.end_id is not None else {}
    settings |= _cache_settings(method)
    return Job(model, mesh, asked, request.canvas, request.labels, method, settings)


def _label_names() -> list[str]:
    return workdir.label_names(epath.Path(_WORKDIR.value))  # no checkpoint has classes


def _given(name: str) -> Any:
    value = flags.FLAGS[name].value
    return tuple(value) if isinstance(value, list) else value


def _settings(model: models.Model, shaping: Shaping) -> dict[str, Any]:
    """The fields of every record of the job: those of BERT's sampler, else what was set."""
    settings = {"seed": _SEED.value}
    settings |= {"temperature": _TEMPERATURE.value, "checkpoint": _CHECKPOINT.value or model.step}
    settings |= shaping.changed() | ({"forbid": _FORBID.value} if _FORBID.value else {})
    for name in ("blocks", "guidance", "length", "weights"):
        flag = flags.FLAGS[name]
        settings |= {name: flag.value} if flag.value != flag.default else {}
    return settings


def _cache_settings(method: Method) -> dict[str, Any]:
    if method.cache is None:
        return {}
    settings = {"cache": method.cache.kind, "refresh": method.cache.refresh}
    return settings | ({"around": method.cache.around} if method.cache.around else {})


def _fingerprint(job: Job) -> str:
    parts = (job.prompts, job.settings, _SAMPLES.value, _BATCH_SIZE.value, dict(job.mesh.shape))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _begin_output(job: Job) -> int:
    """The number of samples that the output holds already. Process 0, which writes it, looks."""
    if not _OUTPUT.value or jax.process_index() != 0:
        return 0
    return sample_files.begin(Path(_OUTPUT.value), job.prompts, _SAMPLES.value, job.settings)


def _fill(job: Job, first: int) -> Iterator[list[filling.Filled]]:
    if jax.process_count() > 1:
        first = int(multihost_utils.broadcast_one_to_all(np.int32(first)))
    return filling.fill(
        job.model.params,
        job.model.encoder,
        job.mesh,
        job.method,
        job.canvas,
        labels=job.labels,
        samples=_SAMPLES.value,
        first=first,
        batch_size=_BATCH_SIZE.value,
        seed=_SEED.value,
    )


def _write(job: Job, done: int) -> list[dict[str, Any]]:
    """Fills all rows and writes or prints each batch. Returns the samples if they are needed later.

    Raises:
      BrokenPipeError: nobody reads them any more, and nothing else needs them.
    """
    writes = jax.process_index() == 0
    samples = []
    with contextlib.ExitStack() as opened:
        append = None
        if _OUTPUT.value and writes:
            append = opened.enter_context(sample_files.appending(Path(_OUTPUT.value)))
        for batch in _shown(job, done, _fill(job, first=done)):
            made = [_record(job, filled) for filled in batch] if writes else []
            if append is not None:
                append(made)
                continue
            if not _WATCH.value:
                _print(made, follows=bool(samples))
            samples += made
            alone = jax.process_count() == 1  # or the others would wait for ever
            if endings.reader_left() and alone and not (_HTML.value or _SAVE.value):
                raise BrokenPipeError
    return samples


def _shown(
    job: Job, done: int, batches: Iterator[list[filling.Filled]]
) -> Iterator[list[filling.Filled]]:
    """The batches, with a bar on stderr, until the first batch if samples are printed there."""
    printed = not (_OUTPUT.value or _WATCH.value) and sys.stdout.isatty()
    total = len(job.prompts) * _SAMPLES.value - done
    with contextlib.ExitStack() as drawn:
        advance = drawn.enter_context(
            progress.bar("writing", total, "samples", first=command_line.compiling(), stays=False)
        )
        for batch in batches:
            advance(len(batch))
            if printed:
                drawn.close()
            yield batch


def _record(job: Job, filled: filling.Filled) -> dict[str, Any]:
    row, sample = divmod(filled.number, _SAMPLES.value)
    return sample_files.record(
        sample_files.name_of(job.prompts[row], sample) | job.settings,
        filled,
        fill=job.canvas.fill[row],
        shown=job.canvas.shown[row],
        tokenizer=job.model.tokenizer,
        with_tokens=bool(_WATCH.value or _HTML.value or _SAVE.value),
    )


def _print(made: list[dict[str, Any]], follows: bool) -> None:
    for index, record in enumerate(made):
        if _JSON.value:
            print(sample_files.line(record, sys.stdout.encoding), flush=True)
        else:
            print(("\n" if follows or index else "") + record["text"], flush=True)


if __name__ == "__main__":
    command_line.run(main)
