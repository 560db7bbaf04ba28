"""The best evaluation of a run, and for how long none was better."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from mdlm_jax.host import distributed

KIND, FIGURE = "eval", "nats_per_token"  # of the records that are compared: the lower the better


class Standing(NamedTuple):
    """The best of some evaluations.

    Attributes:
      step: the step of the lowest figure, the first of equal ones; None if none is finite.
      figure: that figure.
      since: the number of evaluations after it.
    """

    step: int | None = None
    figure: float = math.inf
    since: int = 0

    def after(self, step: int, figure: float | None) -> "Standing":
        """The state after one more evaluation; None is a figure that is not finite."""
        if figure is not None and figure < self.figure:
            return Standing(step, figure)
        return self._replace(since=self.since + 1)


def standing(records: Iterable[Mapping[str, Any]]) -> Standing:
    """The state of the evaluations among the records of a run, in the order written."""
    result = Standing()
    for record in records:
        if record["kind"] == KIND:
            result = result.after(record["step"], record.get(FIGURE))
    return result


class Validation:
    """Decides by the evaluations of a run while it trains. Process 0 decides for all.

    Attributes:
      all: the state of all evaluations; in process 0 only.
      kept_step: the step of the best evaluation that has a checkpoint, or None.
    """

    def __init__(
        self,
        records: Iterable[Mapping[str, Any]],
        saved: Iterable[int],
        *,
        patience: int,
        vote: Callable[[bool], Any],
    ):
        """The state of a run that resumes.

        Args:
          records: of the run so far; none in processes other than 0.
          saved: steps of the checkpoints.
          patience: evaluations without a new best that end the run; 0 for never.
          vote: as in `fit`.
        """
        records, there = list(records), {*saved}
        self._patience, self._vote = patience, vote
        self.all = standing(records)
        self._kept = standing(record for record in records if record["step"] in there)
        step = distributed.of_first(-1 if self._kept.step is None else self._kept.step)
        self.kept_step = None if step < 0 else step

    def add(self, step: int, figure: float) -> bool:
        """Adds the evaluation of `step`. Returns whether its checkpoint is now the best."""
        figure = float(figure)
        self.all = self.all.after(step, figure)
        self._kept = self._kept.after(step, figure)
        is_best = self._asked(self._kept.step == step)
        if is_best:
            self.kept_step = step
        return is_best

    def is_over(self) -> bool:
        """Whether the run ends here, because too many evaluations were no better."""
        return bool(self._patience) and self._asked(self.all.since >= self._patience)

    def _asked(self, answer: bool) -> bool:
        return bool(jax.device_get(self._vote(answer and jax.process_index() == 0)))
