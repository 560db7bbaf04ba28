"""Records to Weights & Biases, beside `metrics.jsonl`."""

import html
from collections.abc import Mapping
from typing import Any

from etils import epath

from mdlm_jax.host import paths

ID = "wandb_id"  # a file of the workdir with the run's id there


def require(project: str) -> None:
    """Checks what opening a run needs, except what only the network knows.

    Args:
      project: of W&B.

    Raises:
      ImportError: wandb is not installed.
      ValueError: no project can have this name, or there is no key for W&B.
    """
    try:
        import wandb
    except ImportError:
        raise ImportError(
            "training.wandb needs the package wandb: pip install 'mdlm_jax[wandb]'"
        ) from None
    try:
        wandb.Settings(project=project)
        mode = wandb.setup().settings.mode
        ready = mode in ("offline", "dryrun", "disabled") or wandb.login(prompt=False, verify=False)
    except (wandb.Error, ValueError) as error:
        raise ValueError(f"training.wandb: {_one_line(error)}") from None
    if not ready:
        raise ValueError(
            "training.wandb: W&B knows no key of yours: run `wandb login`, or set "
            "WANDB_MODE=offline to keep its records in the workdir"
        )


class Run:
    """The run at W&B that shows the contents of `metrics.jsonl`; in process 0 only.

    Its id is kept in the workdir, so that a resumed run is one run there too. The axis is the
    record's own "step", because W&B's may not go back. A run does go back after a crash, and its
    records since the checkpoint are then there twice.
    """

    def __init__(self, directory: epath.Path, project: str, config: Mapping[str, Any] | None):
        """Opens the run, or continues it.

        Args:
          directory: the workdir; where it is local W&B's own files are in it, else where
            $WANDB_DIR says.
          project: of W&B.
          config: of the run, shown beside it.

        Raises:
          ImportError, ValueError: as `require`; or W&B refuses the id of the workdir.
          RuntimeError: W&B cannot be reached.
        """
        require(project)
        import wandb

        path = directory / ID
        known = path.read_text().strip() if path.exists() else None
        try:
            self._run = wandb.init(
                project=project,
                id=known,
                resume="allow",
                name=None if known else directory.name,
                dir=str(directory) if paths.is_local(directory) else None,
                config=dict(config or {}),
                allow_val_change=True,
                settings=wandb.Settings(console="off", quiet=True),
            )
        except wandb.errors.CommError as error:
            raise RuntimeError(
                f"training.wandb: W&B cannot be reached ({_one_line(error)}): WANDB_MODE=offline "
                "keeps its records in the workdir"
            ) from error
        except wandb.Error as error:
            raise ValueError(f"training.wandb: {_one_line(error)}") from None
        self._run.define_metric("*", step_metric="step")
        if known != self._run.id:
            paths.write(path, f"{self._run.id}\n")

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Logs the numbers and the texts of a record under `kind/name`."""
        shown = {
            f"{kind}/{name}": _shown(value)
            for name, value in values.items()
            if isinstance(value, int | float | str)
        }
        self._run.log({"step": step, **shown})

    def close(self, *, failed: bool = False) -> None:
        """Waits until W&B has everything, and reports whether the run failed."""
        self._run.finish(exit_code=int(failed))


def _shown(value: float | str) -> Any:
    """Text on a panel of its own, as it stands; words and numbers unchanged."""
    import wandb

    if not isinstance(value, str) or len(value.split()) <= 1:
        return value
    return wandb.Html(f"<pre style='white-space: pre-wrap'>{html.escape(value)}</pre>")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
