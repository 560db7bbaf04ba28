"""Makes the rows that a config trains on, and shows them.

    python -m mdlm_jax.prepare --config=quickstart
    MDLM_JAX_CACHE=gs://my-bucket/prepared python -m mdlm_jax.prepare --config=lm1b

Reads the text, trains or loads the tokenizer, tokenizes and packs. This is done once: training
finds the rows by their inputs in `$MDLM_JAX_CACHE`: a folder, perhaps of many machines, or a
bucket. `--runner=DataflowRunner --beam_options=project=P,region=R,...` tokenizes on many machines.
It shows the sizes of each split, how well the vocabulary covers the text, and a few rows as the
model will see them.
"""

from collections.abc import Iterator

import numpy as np
import rich.box
import rich.console
import rich.table
from absl import flags

from mdlm_jax import data
from mdlm_jax.data.cache import open_cache
from mdlm_jax.data.tokens.encoding import Encode, encode_splits
from mdlm_jax.host import command_line
from mdlm_jax.runs import following, starting

_CONFIG = command_line.define_config()
_SHOW = flags.DEFINE_integer("show", 3, "Rows of the training split to print.", 0)
_RUNNER = flags.DEFINE_string(
    "runner",
    "",
    "Apache Beam's runner, that tokenizes: DirectRunner (this machine) or DataflowRunner, with the "
    "same rows out; needs mdlm_jax[tfds-build]. By default this process does it, without Beam.",
)
_BEAM_OPTIONS = flags.DEFINE_list(
    "beam_options",
    [],
    "Of --runner, options of Beam, with commas between: direct_num_workers=8 or "
    "project=P,region=R,temp_location=gs://my-bucket/temp.",
)
command_line.require("config")
flags.declare_key_flag("config")


def main() -> int:
    """Prepares the data of the flags, prints a summary, and returns the exit code."""
    with command_line.bad_input():
        chosen, given = command_line.chosen_config(_CONFIG), command_line.given_keys(_CONFIG)
        experiment, _ = following.experiment_of(chosen, given)
        architecture = starting.architecture(experiment.start)
        experiment.planned_encoder(architecture)  # says at once what needs no data
        prepared = data.prepare(experiment.data, encode=_encode(experiment.data))
        experiment.encoder(prepared, architecture)  # says now what does not fit the model
    console = rich.console.Console(highlight=False, markup=False, soft_wrap=True)
    console.print(_heading(prepared))
    console.print(_sizes(prepared))
    for line in _notes(prepared):
        console.print(line)
    for row in range(min(_SHOW.value, len(prepared.splits["train"]))):
        console.print(f"\ntrain, row {row:,}:")
        console.print(_text(prepared, prepared.splits["train"], row))
    return 0


def _encode(config: data.Config) -> Encode:
    """What tokenizes.

    Raises:
      ValueError: the flags of Beam are wrong.
      ModuleNotFoundError: Beam is not installed.
    """
    if not _RUNNER.value:
        if _BEAM_OPTIONS.value:
            raise ValueError("--beam_options needs --runner, which they are for")
        return encode_splits
    try:
        from mdlm_jax.data import beam_preparation  # It takes seconds.
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "apache_beam":
            raise
        raise ModuleNotFoundError(
            f"--runner={_RUNNER.value} needs Apache Beam: pip install 'mdlm_jax[tfds-build]'"
        ) from None
    beam_preparation.check_reachable(config, _RUNNER.value)
    return beam_preparation.encoder(_RUNNER.value, _BEAM_OPTIONS.value)


def _heading(prepared: data.Prepared) -> str:
    card, bucket = prepared.card, open_cache(None).bucket
    shared = f", a copy of {bucket.url}/{prepared.path.name}" if bucket else ""
    return (
        f"{card['source']}, version {card['version']}, in rows of {card['config']['length']} "
        f"tokens; {prepared.vocab_size:,} entries in the vocabulary\n{prepared.path}{shared}"
    )


_SIZES = {
    "documents": "documents",
    "rows": "rows",
    "tokens": "tokens",
    "longest document, tokens": "longest",
    "cut off, tokens": "cut_tokens",
    "unknown tokens": "unknown_tokens",
    "characters": "characters",
}


def _sizes(prepared: data.Prepared) -> rich.table.Table:
    splits = prepared.card["splits"]
    table = rich.table.Table("", box=rich.box.SIMPLE_HEAD)
    for split in splits:
        table.add_column(split, justify="right")
    for name, key in _SIZES.items():
        table.add_row(name, *(f"{sizes[key]:,}" for sizes in splits.values()))
    paces = (sizes["characters"] / sizes["tokens"] for sizes in splits.values())
    table.add_row("characters a token", *(f"{pace:.2f}" for pace in paces))
    return table


def _notes(prepared: data.Prepared) -> Iterator[str]:
    """Lines about the sizes, and warnings before training on them."""
    train = prepared.card["splits"]["train"]
    unknown = train["unknown_tokens"] / train["tokens"]
    yield (
        f"coverage: {1 - unknown:.3%} of the training tokens have an entry of their own, and "
        f"{_entries_used(prepared):.1%} of the entries occur"
    )
    if warning := data.unknown_warning(prepared.card, prepared.tokenizer):
        yield f"warning: {warning}"
    if train["cut_tokens"]:
        share = train["cut_tokens"] / train["tokens"]
        yield (
            f"cut: {share:.1%} of the training tokens are in no row, because their documents are "
            f"longer than {prepared.card['config']['length']} tokens"
        )
    if dropped := train.get("dropped_documents"):
        yield (
            f"left out: {dropped:,} training pairs, whose prompts leave no room for a response in "
            f"rows of {prepared.card['config']['length']} tokens"
        )
    if prepared.label_names:
        yield f"labels: {', '.join(prepared.label_names)}"


def _entries_used(prepared: data.Prepared) -> float:
    rows = prepared.splits["train"].tokens
    used = np.zeros(prepared.vocab_size, bool)
    for start in range(0, len(rows), 4096):  # the rows may be larger than the memory
        used[np.unique(rows[start : start + 4096])] = True
    return float(used.mean())


def _text(prepared: data.Prepared, rows: data.Rows, row: int) -> str:
    (tokens,) = rows[row : row + 1].texts()
    return data.decode(prepared.tokenizer, tokens)


if __name__ == "__main__":
    command_line.run(main)
