"""Makes the page of a run again, or one page that compares several.

    python -m mdlm_jax.report runs/a             # runs/a/report.html
    python -m mdlm_jax.report runs/a runs/b      # comparison.html

Reads what train, evaluate and generate --save left in the folders.
"""

from absl import flags
from etils import epath

from mdlm_jax import command_line
from mdlm_jax.evaluation.comparison import write_comparison
from mdlm_jax.evaluation.report import write_report

_OUTPUT = flags.DEFINE_string("output", "comparison.html", "The page that compares several runs.")


def main(workdirs: list[str]) -> int:
    """Writes the page; returns the exit code."""
    with command_line.bad_input():
        if not workdirs:
            raise ValueError("give the folder of a run, or of several to compare")
        folders = [epath.Path(each) for each in workdirs]
        if len(folders) == 1:
            path = write_report(folders[0])
        else:
            path = write_comparison(folders, epath.Path(_OUTPUT.value))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    command_line.run(main, words=True)
