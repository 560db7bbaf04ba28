"""Makes the page of a run again, or one page or picture that compares several.

    python -m mdlm_jax.report runs/a             # runs/a/report.html
    python -m mdlm_jax.report runs/a runs/b      # comparison.html
    python -m mdlm_jax.report runs/a/evaluation_test.json bert/evaluation_text.json   # curves.png

Reads what train, evaluate and generate --save left in the folders. Of files that evaluate wrote it
draws the cross-entropy against the mask rate, a line a file.
"""

from pathlib import Path

from etils import epath

from mdlm_jax.host import command_line, paths
from mdlm_jax.pages.comparison import write_comparison
from mdlm_jax.pages.curves_plot import curves_png, read_evaluations
from mdlm_jax.pages.report import write_report

_OUTPUT = command_line.define_path(
    "output", None, "What compares several: comparison.html of runs, curves.png of files."
)


def main(words: list[str]) -> int:
    """Writes the page or the picture; returns the exit code."""
    words = [paths.plain(word) for word in words]
    with command_line.bad_input():
        if not words:
            raise ValueError("give the folder of a run, or of several to compare")
        of_files = [word.endswith(".json") for word in words]
        if any(of_files):
            path = _write_curves(words, all(of_files))
        elif len(words) == 1:
            if _OUTPUT.value:
                raise ValueError(
                    "--output is for a comparison: report.html lies in the run's folder"
                )
            path = write_report(epath.Path(words[0]))
        else:
            path = epath.Path(_OUTPUT.value or "comparison.html")
            paths.check_output(path, "--output", kinds=(".html", ".htm"))
            write_comparison([epath.Path(word) for word in words], path)
    print(f"written: {path}")
    return 0


def _write_curves(words: list[str], are_files: bool) -> Path:
    if not are_files:
        raise ValueError("give folders of runs, or files evaluation_*.json, not both")
    path = Path(_OUTPUT.value or "curves.png")
    paths.check_output(path, "--output", kinds=(".png",))
    paths.write(path, curves_png(read_evaluations(words)))
    return path


if __name__ == "__main__":
    command_line.run(main, words=True)
