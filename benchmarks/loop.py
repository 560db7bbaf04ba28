"""How much slower `train` is than its step alone: what reading, batching and metrics cost.

    python -m benchmarks.loop [--shape=owt] [--steps=200]

Times the step by `python -m benchmarks.train_step`, then trains the same shape by the command that
users run, `python -m mdlm_jax.train`, on a text of random words: each in a process of its own, one
after the other. Prints a JSON line of each; of the loop, `times_step` is its time by the step's. It
needs all that `train` needs. docs/performance.md explains the fields.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from benchmarks import measure, shapes

BATCHES = 32  # of text; then it begins again
RECORDS = 10  # of the run, each the mean of so many steps
_SPECIAL = ("[SEP]", "[PAD]", "[UNK]", "[MASK]")
_OF_SHAPE = ("rows", "length", "remat", "attention_backend", "dtype")
_CONFIG = """\
from mdlm_jax.runs.experiment import default_config

def get_config():
    config = default_config()
    config.update({changes!r})
    return config
"""


def main(arguments: list[str] | None = None) -> int:
    """Prints the lines; returns the exit code."""
    flags = shapes.parser(__doc__)
    shapes.add_flags(flags)
    flags.add_argument("--steps", type=int, default=200, help="Of the run. Default: %(default)s.")
    args = flags.parse_args(arguments)
    if args.steps < 2 * RECORDS:
        flags.error(f"--steps={args.steps}: must be at least {2 * RECORDS}")
    try:  # as `train_step` would, but this process must leave the device's memory alone
        given = {name: getattr(args, name) for name in (*_OF_SHAPE, "scan")}
        shapes.shape(args.shape, **given)
    except ValueError as error:
        flags.error(f"--{error}")
    step = timed_step(args)
    print(json.dumps(step), flush=True)
    named = {name: step[name] for name in (*_OF_SHAPE, "scan")}
    shape = shapes.shape(args.shape, **named)
    with tempfile.TemporaryDirectory() as folder:
        records = trained(Path(folder), shape, args.steps)
    of_record = [1e3 * shape.rows * shape.length / r["tokens_per_second"] for r in records]
    times = measure.Times(statistics.median(of_record), min(of_record), max(of_record))
    measure.tell(
        "loop",
        times,
        shape=args.shape,
        **named,
        steps=args.steps,
        tokens_per_second=shape.rows * shape.length / times.median * 1e3,
        times_step=times.median / step["ms"],
        flops=step["flops"],
        device=step["device"],
    )
    return 0


def timed_step(args: Any) -> dict[str, Any]:
    """The line of `benchmarks.train_step` for the flags of a shape."""
    given = {name: getattr(args, name) for name in _OF_SHAPE}
    asked = [f"--{name}={value}" for name, value in given.items() if value is not None]
    if args.scan is not None:
        asked.append("--scan" if args.scan else "--no-scan")
    command = [sys.executable, "-m", "benchmarks.train_step", f"--shape={args.shape}", *asked]
    return json.loads(subprocess.check_output(command, text=True))


def trained(folder: Path, shape: shapes.Shape, steps: int) -> list[dict[str, Any]]:
    """The training records of a run of the shape in `folder`, the first half left out."""
    write_run(folder, shape, steps)
    run = [sys.executable, "-m", "mdlm_jax.train"]
    flags = [f"--config={folder}/config.py", f"--workdir={folder}/run"]
    subprocess.run([*run, *flags], check=True, stdout=sys.stderr)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    told = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    return told[len(told) // 2 :]


def write_run(folder: Path, shape: shapes.Shape, steps: int) -> None:
    """A tokenizer of the shape's size, a text in its words, and the config of a run on them."""
    words = shape.encoder.vocab_size - len(_SPECIAL)
    vocabulary = [f"w{i}" for i in range(words)] + list(_SPECIAL)
    model = models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    draw = np.random.default_rng(0)
    for split, rows in (("train", BATCHES * shape.rows), ("validation", 8), ("test", 8)):
        ids = (draw.random((rows, shape.length)) ** 4 * words).astype(int)
        text = "\n".join(" ".join(f"w{i}" for i in row) for row in ids)
        (folder / f"{split}.txt").write_text(text)
    encoder = dataclasses.asdict(shape.encoder)
    of_data = ("vocab_size", "mask_id", "max_length")
    changes = {
        "data": {
            "source": "text_files",
            "files": str(folder / "train.txt"),
            "validation_files": str(folder / "validation.txt"),
            "test_files": str(folder / "test.txt"),
            "tokenizer": str(folder / "tokenizer.json"),
            "length": shape.length,
        },
        "model": {name: value for name, value in encoder.items() if name not in of_data},
        "optimizer": {"warmup_steps": 1},
        "training": {
            "batch_size": shape.rows,
            "steps": steps,
            "log_every": steps // RECORDS,
            "save_every": steps,
        },
        "evaluation": {"every": steps, "rows": 4, "batch_size": 4, "sample_steps": 2},
    }
    (folder / "config.py").write_text(_CONFIG.format(changes=changes))


if __name__ == "__main__":
    sys.exit(main())
