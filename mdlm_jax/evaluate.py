"""Measures the likelihood of text under a trained model.

    python -m mdlm_jax.evaluate --workdir=runs/quickstart --split=test

Prints the NELBO, an upper bound of the negative log-likelihood, in nats per token with two standard
errors (of drawing masks, and of the choice of text), beside n-gram cross-entropies over the same
tokens, and the cross-entropy, accuracy and calibration against the mask rate. Writes
evaluation_SPLIT.json and report.html into the workdir. A model that was trained autoregressively
or in blocks of one token has its exact cross-entropy instead. Rows are spread over all devices.

    python -m mdlm_jax.evaluate --workdir=runs/quickstart --text='files/*.txt'
    python -m mdlm_jax.evaluate --checkpoint=google-bert/bert-base-uncased --text='files/*.txt' \
        --output=bert

Any text, under a run or a checkpoint of Hugging Face; writes evaluation_text.json.

    python -m mdlm_jax.evaluate --workdir=runs/quickstart --frontier --steps=4,16,64

--frontier measures what the model writes instead: for every strategy, number of steps, temperature
and guidance weight the samples' likelihood under another model, their diversity and their cost,
beside real text. Writes frontier.json and frontier.png into the workdir.

    python -m mdlm_jax.evaluate --workdir=runs/answers --answers --steps=4,16

--answers measures what a run that was trained on pairs writes behind prompts of the split: how much
of it is the response that was wanted. Writes answers.json into the workdir.
"""

import json
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh

from mdlm_jax import data
from mdlm_jax.data import progress
from mdlm_jax.data.config import DOCUMENTS
from mdlm_jax.evaluation.bounds import likelihoods, ngrams, text_sizes
from mdlm_jax.host import command_line, compilation, distributed, host_memory, paths
from mdlm_jax.measuring import answers, frontier
from mdlm_jax.pages import likelihood_table
from mdlm_jax.pages.report import write_report
from mdlm_jax.runs import models, workdir
from mdlm_jax.writing import filling

_SPLITS = ("train", "validation", "test")

_WORKDIR = command_line.define_path("workdir", None, "Folder of the run.")
_SPLIT = flags.DEFINE_enum("split", "test", _SPLITS, "Which text.")
_WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params"], "Averaged or raw weights.")
_STEP = command_line.define_step()
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows evaluated, or sampled, at a time.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws, or of the samples.", 0, 2**64 - 1)
_DRAWS = flags.DEFINE_integer("draws", 8, "Corruptions of each row; more shrink the error.", 2)
_MESH = flags.DEFINE_string(
    "mesh",
    "data=-1",
    "Devices along data (rows), fsdp (rows and weights) and tensor (layers), such as "
    "fsdp=4,tensor=2; -1 is the rest. Changes no figure but by rounding.",
)
_CHECKPOINT = command_line.define_path(
    "checkpoint",
    None,
    "Instead of --workdir, with --text and --output: a folder of Hugging Face, a name of its hub, "
    "or the folder of a run.",
)
_TEXT = flags.DEFINE_string(
    "text",
    None,
    "Instead of a split: globs of .txt, .jsonl or .parquet files, with commas between.",
)
_DOCUMENTS = flags.DEFINE_enum(
    "documents", "file", DOCUMENTS, "Of --text, what one document of a .txt is."
)
_LENGTH = flags.DEFINE_integer(
    "length", None, "Of --text, tokens in a row; by default as in training, or the longest.", 2
)
_NAME = flags.DEFINE_string("name", "text", "Of --text, what follows evaluation_ in the file.")
_OUTPUT = command_line.define_path("output", None, "Of --text, the folder to write into.")
_FRONTIER = flags.DEFINE_bool("frontier", False, "Measure samples, not the likelihood.")
_ANSWERS = flags.DEFINE_bool(
    "answers", False, "Of a run that was trained on pairs: measure what it answers."
)
flags.adopt_module_key_flags(frontier)

_OF_TEXT = ("checkpoint", "documents", "length", "name", "output")
_OF_LIKELIHOOD = ("draws", "text", *_OF_TEXT)


class Job(NamedTuple):
    """The checked request.

    Attributes:
      model: on the mesh.
      mesh: of all devices.
      rows: of the text.
      size: of the text.
      record: the file's part about model and text.
      counted: the training text and the number of ids, for n-grams; None if it is not at hand.
      folder: the folder to write into.
    """

    model: models.Model
    mesh: Mesh
    rows: data.Rows
    size: text_sizes.TextSize
    record: dict[str, Any]
    counted: tuple[data.Rows, int] | None
    folder: epath.Path


def main() -> int:
    """Carries out the flags and returns the exit code."""
    with command_line.bad_input():
        _check_flags()
        of_samples = _FRONTIER.value or _ANSWERS.value
        if of_samples:
            compilation.keep()
        else:
            command_line.join_job()
        with distributed.failing_together():
            mesh = filling.make_mesh(_MESH.value)
        if not of_samples:
            job = _plan_text(mesh) if _TEXT.value else _plan_split(mesh)
    host_memory.keep_freed()
    if not of_samples:
        return _measure(job)
    measure = frontier.measure if _FRONTIER.value else answers.measure
    return measure(
        epath.Path(_WORKDIR.value),
        split=_SPLIT.value,
        weights=_WEIGHTS.value,
        step=_STEP.value,
        seed=_SEED.value,
        batch_size=_BATCH_SIZE.value,
        mesh=mesh,
    )


def _check_flags() -> None:
    if _FRONTIER.value and _ANSWERS.value:
        raise ValueError("--frontier and --answers exclude each other")
    for given, name in ((_FRONTIER.value, "--frontier"), (_ANSWERS.value, "--answers")):
        if given:
            _refuse(_OF_LIKELIHOOD, f"is for the likelihood, not for {name}")
    if not _FRONTIER.value:
        shared = () if _ANSWERS.value else answers.FLAGS
        _refuse(shared, "is for --frontier or --answers, and neither is given")
        own = tuple(name for name in frontier.FLAGS if name not in answers.FLAGS)
        _refuse(own, "is for --frontier, which is not given")
    if _TEXT.value is None:
        _refuse(_OF_TEXT, "needs --text: a split is measured of a run, into its --workdir")
    else:
        _refuse(("split",), "and --text exclude each other")
    if _CHECKPOINT.value and _WORKDIR.value:
        raise ValueError("--workdir and --checkpoint exclude each other")
    if not (_CHECKPOINT.value or _WORKDIR.value):
        raise ValueError("--workdir is required (or --checkpoint, of --text)")
    if _CHECKPOINT.value and not _OUTPUT.value:
        raise ValueError("--checkpoint needs --output, the folder to write into")
    if not re.fullmatch(r"[\w.\-]+", _NAME.value) or _NAME.value in _SPLITS:
        raise ValueError(
            f"--name must be letters, digits, dots, - and _, and no split, not {_NAME.value!r}"
        )


def _refuse(names: tuple[str, ...], reason: str) -> None:
    for name in names:
        if flags.FLAGS[name].present:
            raise ValueError(f"--{name} {reason}")


def _plan_split(mesh: Mesh) -> Job:
    """A split of the data of a run."""
    folder = epath.Path(_WORKDIR.value)
    _check_outputs(folder, _SPLIT.value)
    trained = workdir.load(folder, weights=_WEIGHTS.value, step=_STEP.value, mesh=mesh)
    with distributed.failing_together():
        model = models.of_run(trained, _WEIGHTS.value)
        prepared = workdir.load_data(trained, folder)
        rows = prepared.splits[_SPLIT.value]
        return Job(
            model=model,
            mesh=mesh,
            rows=rows,
            size=text_sizes.text_size(rows, model.tokenizer),
            record=_of_model(model, {"split": _SPLIT.value}),
            counted=(prepared.splits["train"], prepared.vocab_size),
            folder=folder,
        )


def _plan_text(mesh: Mesh) -> Job:
    """Files of text, under a run or a checkpoint."""
    name = _CHECKPOINT.value or _WORKDIR.value
    folder = epath.Path(_OUTPUT.value or _WORKDIR.value)
    _check_outputs(folder, _NAME.value)
    counted = None
    if _CHECKPOINT.value:
        weights = _WEIGHTS.value if flags.FLAGS["weights"].present else None
        model = models.load(name, mesh, weights=weights, step=_STEP.value)
    else:
        trained = workdir.load(
            epath.Path(name), weights=_WEIGHTS.value, step=_STEP.value, mesh=mesh
        )
        model = models.of_run(trained, _WEIGHTS.value)
        if prepared := data.find_prepared(trained.config["data_fingerprint"]):
            counted = prepared.splits["train"], prepared.vocab_size
    with distributed.failing_together():
        longest = model.encoder.max_length
        length = _LENGTH.value or model.length
        if length > longest:
            raise ValueError(
                f"--length must be from 2 to {longest}, the model's rows, not {length}"
            )
        if length % (size := model.block_size):
            raise ValueError(
                f"--length must be a multiple of {size}, the model's blocks, not {length}"
            )
        try:
            rows = data.read_rows(_TEXT.value, model.tokenizer, length, documents=_DOCUMENTS.value)
        except ValueError as error:
            raise ValueError(f"--text: {str(error).removeprefix('files: ')}") from None
        stream = rows.tokens[rows.counted]
        unknown = data.special_ids(model.tokenizer).unk
        record = {
            "split": _NAME.value,
            "checkpoint": name,
            "files": _TEXT.value,
            "documents": _DOCUMENTS.value,
            "length": length,
            "unknown_tokens": 0 if unknown is None else int(np.sum(stream == unknown)),
        }
        record = _of_model(model, record)
        folder.mkdir(parents=True, exist_ok=True)
        # As one row: a word that two rows share counts once.
        size = text_sizes.text_size(data.Rows(stream[None], rows.labels[:1]), model.tokenizer)
        return Job(model, mesh, rows, size, record, counted, folder)


def _check_outputs(folder: epath.Path, split: str) -> None:
    """Checks at once that the figures can be written.

    Raises:
      ValueError: as `paths.check_output`, or `folder` is a file.
    """
    if not folder.is_dir():
        if folder.exists():
            raise ValueError(f"{folder}: a file is there, it must be a folder")
        return  # what reads a run says so
    for name in (f"evaluation_{split}.json", "report.html"):
        paths.check_output(folder / name)


def _of_model(model: models.Model, record: dict[str, Any]) -> dict[str, Any]:
    if model.exact:
        _refuse(
            ("draws", "seed"), "does nothing for a model that is measured exactly, token by token"
        )
    record = {**record, "step": model.step, "weights": model.weights}
    return record if model.exact else {**record, "draws": _DRAWS.value}


def _measure(job: Job) -> int:
    """Measures, prints and writes. Every process measures, and the first one writes."""
    model, rows = job.model, job.rows
    measure = model.family.make_measure(
        model.objective,
        model.encoder,
        start_id=data.special_ids(model.tokenizer).sep,
        seed=_SEED.value,
        draws=_DRAWS.value,
        mesh=job.mesh,
        curve=True,
    )
    with progress.bar(
        "measuring",
        len(rows) * measure.passes,
        "rows",
        first=command_line.compiling(),
        stays=False,
    ) as advance:
        figures = measure.of_rows(model.params, rows, _BATCH_SIZE.value, advance)
    if jax.process_index() != 0:
        return 0

    record = job.record | figures
    record |= likelihoods.per_text_unit(record["nats_per_token"], record["tokens"], job.size)
    if job.counted:
        train, vocab_size = job.counted
        counted = train, rows, vocab_size
        record["unigram"] = ngrams.unigram_cross_entropy(*counted)
        record["bigram"] = ngrams.bigram_cross_entropy(*counted)
        record["trigram"] = ngrams.trigram_cross_entropy(*counted)
    path = job.folder / f"evaluation_{record['split']}.json"
    paths.write(path, json.dumps(record, indent=2) + "\n")
    print(likelihood_table.table(record))
    written = [path]
    if (job.folder / "config.json").is_file() and (job.folder / "checkpoints").is_dir():
        with command_line.bad_input():  # records that are damaged
            written.append(write_report(job.folder))
    print(f"written: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
