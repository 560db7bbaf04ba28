"""Perplexity by the size of blocks, at equal tokens; and what the text is worth that they write.

    python -m benchmarks.block_quality train --sizes 1 4 --length=256 [--config.KEY=VALUE ...]
    python -m benchmarks.block_quality gather --sizes 1 4 8 16 256 --length=256

`train` runs the commands `train`, `evaluate --step=best` and `evaluate --frontier` for each size,
in folders of their own below `--folder`. What is finished there is not done again, and a training
that was cut off is resumed, so that sizes may be spread over calls. All have the same seed, and so
the same initial parameters, and the same rows in the same order. Arguments that begin with
`--config` go to `train`. The frontier is measured at each number of `--tokens_a_step`,
or at a block's tokens where it has fewer.

`gather` writes block_quality.json and block_quality.svg into the folder: the perplexity of the test
split at the best validation, with two standard errors of text and masks. It needs no accelerator.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Trains and measures, or gathers; returns the exit code."""
    flags = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("part", choices=("train", "gather"))
    add = flags.add_argument
    add("--sizes", type=int, nargs="+", default=[1, 4, 8, 16, 256], help="Default: %(default)s.")
    add("--length", type=int, default=256, help="Tokens of a row. Default: %(default)s.")
    add("--tokens_a_step", type=int, nargs="+", default=[1, 2, 4], help="Default: %(default)s.")
    add("--config", default="english", help="As for train. Default: %(default)s.")
    add("--folder", type=Path, default=Path("runs/block_quality"), help="Default: %(default)s.")
    add("--draws", type=int, default=8, help="Of the likelihood. Default: %(default)s.")
    add("--samples", type=int, default=64, help="Of the frontier; 0 for none.")
    args, others = flags.parse_known_args(arguments)
    for other in others:
        if not other.startswith("--config."):
            flags.error(f"{other}: no flag, and no --config.KEY=VALUE")
    for size in args.sizes:
        if size < 1 or args.length % size:
            flags.error(f"--sizes {size}: must divide --length={args.length}")
    if args.part == "gather":
        return _gather(args.folder, args.sizes)
    for size in args.sizes:
        for written, command in commands(args, size, others):
            if written is not None and written.exists():
                continue
            code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
            if code:
                return code
    return 0


def commands(
    args: argparse.Namespace, size: int, others: Sequence[str]
) -> list[tuple[Path | None, list[str]]]:
    """The commands of one size, each with the file that tells that it is done."""
    folder = args.folder / str(size)
    train = [
        "mdlm_jax.train",
        f"--config={args.config}",
        "--config.objective.name=block",
        f"--config.objective.block_size={size}",
        f"--config.data.length={args.length}",
        "--config.training.keep_best=True",
        *others,
    ]
    of_run = [f"--workdir={folder}"]
    evaluate = ["mdlm_jax.evaluate", *of_run, "--step=best", f"--draws={args.draws}"]
    # Of a row; a block takes its share of them, and at least one.
    steps = sorted({args.length // min(each, size) for each in args.tokens_a_step}, reverse=True)
    frontier = [
        *("mdlm_jax.evaluate", *of_run, "--step=best", "--frontier"),
        f"--samples={args.samples}",
        "--strategies=exact_count",
        f"--steps={','.join(map(str, steps))}",
    ]
    return [
        (folder / "evaluation_test.json", [*train, *of_run]),  # a finished one ends at once
        (folder / "evaluation_test.json", evaluate),
        *([(folder / "frontier.json", frontier)] if args.samples else []),
    ]


def _gather(folder: Path, sizes: Sequence[int]) -> int:
    missing = [size for size in sizes if not (folder / str(size) / "evaluation_test.json").exists()]
    if missing:
        print(f"no evaluation_test.json of sizes {missing} below {folder}", file=sys.stderr)
        return 2
    lines = [line_of(folder / str(size), size) for size in sizes]
    (folder / "block_quality.json").write_text(json.dumps(lines, indent=1))
    (folder / "block_quality.svg").write_text(picture(lines))
    for line in lines:
        print(json.dumps({name: line[name] for name in line if name != "frontier"}))
    return 0


def line_of(folder: Path, size: int) -> dict[str, Any]:
    """The figures of one size, with its frontier if that was measured.

    The error is that of the perplexity: of the nats a token, of masks and text, times it.
    """
    figures = json.loads((folder / "evaluation_test.json").read_text())
    named = ("step", "nats_per_token", "mc_error", "text_error", "perplexity", "tokens", "rows")
    line = {"block_size": size, **{name: figures[name] for name in named}}
    line["perplexity_error"] = figures["perplexity"] * math.hypot(
        figures["mc_error"], figures["text_error"] or 0.0
    )
    frontier = folder / "frontier.json"
    return line | ({"frontier": json.loads(frontier.read_text())} if frontier.exists() else {})


def picture(lines: Sequence[dict[str, Any]]) -> str:
    """Perplexity against the size of blocks, with bars of two standard errors, as SVG."""
    import io

    import matplotlib
    from matplotlib.figure import Figure

    from mdlm_jax.pages.plots import RUN_COLORS, STYLE

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        sizes = [line["block_size"] for line in lines]
        axes.errorbar(
            sizes,
            [line["perplexity"] for line in lines],
            yerr=[2 * line["perplexity_error"] for line in lines],
            color=RUN_COLORS[0],
            marker="o",
            capsize=3,
        )
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("tokens of a block")
        axes.set_ylabel("perplexity of the test split, at most")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
