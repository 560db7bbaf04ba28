"""How most families are measured: a likelihood of each row, and perhaps a curve over mask rates."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from mdlm_jax import data
from mdlm_jax.evaluation.bounds import likelihoods
from mdlm_jax.evaluation.bounds.rate_curves import Point
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.runs.families.base import Config, Figures, Measure

PyTree = Any


class Curve(NamedTuple):
    """The cross-entropy by the share that is masked.

    Attributes:
      of_rows: `(params, rows, batch_size[, advance]) -> points`.
      mean: of the points over all rates: a check of the likelihood by other draws.
    """

    of_rows: Callable[..., list[Point]]
    mean: Callable[[list[Point]], float]


def by_likelihood(
    make_likelihood: Callable[..., likelihoods.OfRows],
    is_exact: Callable[[ObjectiveConfig], bool],
    *,
    make_curve: Callable[..., Curve] | None = None,
    figures_of: Callable[[ObjectiveConfig], Figures] = lambda objective: {},
) -> Callable[..., Measure]:
    """`Family.make_measure` of a family whose rows have a likelihood.

    Args:
      make_likelihood: of the family.
      is_exact: of the family. An exact likelihood has no curve, for it draws no masks.
      make_curve: `(objective, config, seed, mesh) -> Curve`; None if there is none.
      figures_of: what else is said of the objective.
    """

    def make_measure(
        objective: ObjectiveConfig,
        config: Config,
        *,
        start_id: int | None,
        seed: int,
        draws: int,
        mesh: Mesh | None,
        curve: bool = False,
    ) -> Measure:
        exact = is_exact(objective)
        likelihood = make_likelihood(
            objective, config, start_id=start_id, seed=seed, draws=draws, mesh=mesh
        )
        over_rates = None
        if curve and make_curve is not None and not exact:
            over_rates = make_curve(objective, config, seed=seed, mesh=mesh)

        def of_rows(params: PyTree, rows: data.Rows, batch_size: int, *advance) -> Figures:
            figures = {"likelihood": "exact" if exact else "bound", **figures_of(objective)}
            figures |= likelihoods.summary(likelihood(params, rows, batch_size, *advance))
            if over_rates is not None:
                points = over_rates.of_rows(params, rows, batch_size, *advance)
                figures |= {"rate_curve": points, "rate_curve_trapezoid": over_rates.mean(points)}
            return figures

        return Measure(of_rows, passes=1 if over_rates is None else 2)

    return make_measure
