"""AdamW or Muon, the gradient clipped, with warm-up and decay: all from optax; parts frozen."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib

PyTree = Any

NAMES = ("adamw", "muon")
DECAYS = ("cosine", "linear", "constant")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101), or Muon for the matrices.

    Attributes:
      name: 'adamw', or 'muon': the kernels' momentum is made orthogonal before it is added (Jordan
        et al. 2024, https://kellerjordan.github.io/posts/muon), each matrix by itself; embeddings,
        biases and norms are AdamW's, without weight decay and with Nesterov's momentum.
      learning_rate: the peak, which is reached after the warm-up.
      matrix_learning_rate: of muon, the peak for the kernels; it rises and falls with the other. It
        is used as it is for square matrices, and times the root of outputs / inputs where a matrix
        has more outputs than inputs. 0 with adamw.
      warmup_steps: steps of linear rise from 0.
      decay: the shape of the fall from the peak to the end of the run: 'cosine', 'linear' or
        'constant'.
      final_fraction: the last learning rate as a fraction of the peak; unused if constant.
      weight_decay: multiplied by the learning rate. It applies only to leaves named `kernel`.
      b1: decay of the mean of the gradients.
      b2: decay of the mean of their squares.
      eps: added to the root of the mean of the squares.
      clip_norm: the largest global norm of the gradient; `inf` never clips.
      layer_decay: factor of the learning rate from each block to the one below it (Clark et al.
        2020, ELECTRA, arXiv:2003.10555); 1 for the same rate everywhere.
      freeze: parts that are not trained, separated by commas, such as 'embeddings'; '' for none.

    Raises:
      ValueError: if a value is out of its range.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-4
    matrix_learning_rate: float = 0.0
    warmup_steps: int = 1000
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: float = 0.1
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    freeze: str = ""

    def __post_init__(self):
        muon = self.name == "muon"
        rate = self.matrix_learning_rate
        checks = {
            "name": (self.name in NAMES, f"be one of {', '.join(NAMES)}"),
            "matrix_learning_rate": (
                0 < rate < math.inf if muon else rate == 0,
                "be positive where optimizer.name is 'muon'"
                if muon
                else "be 0 where optimizer.name is not 'muon'",
            ),
            "learning_rate": (0 < self.learning_rate < math.inf, "be positive"),
            "warmup_steps": (self.warmup_steps >= 0, "be at least 0"),
            "decay": (self.decay in DECAYS, f"be one of {', '.join(DECAYS)}"),
            "final_fraction": (0 <= self.final_fraction <= 1, "lie in [0, 1]"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "be at least 0"),
            "b1": (0 <= self.b1 < 1, "lie in [0, 1)"),
            "b2": (0 <= self.b2 < 1, "lie in [0, 1)"),
            "eps": (0 < self.eps < math.inf, "be positive"),
            "clip_norm": (self.clip_norm > 0, "be positive"),
            "layer_decay": (0 < self.layer_decay <= 1, "lie in (0, 1]"),
        }
        for name, (good, demand) in checks.items():
            if not good:
                raise ValueError(f"optimizer.{name} must {demand}, not {getattr(self, name)!r}")

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """The names in `freeze`."""
        return tuple(name.strip() for name in self.freeze.split(",") if name.strip())


def make_optimizer(
    config: OptimizerConfig,
    steps: int,
    *,
    matrices: PyTree | None = None,
    multipliers: PyTree | None = None,
    frozen: PyTree | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run of `steps` steps, and its learning rate by number of updates.

    What Muon, `layer_decay` and `freeze` mean depends on the model, which gives a tree for each.

    Args:
      config: everything else.
      steps: length of the run.
      matrices: of muon, a tree as of the parameters: at each kernel an
        `optax.contrib.MuonDimensionNumbers`, which says what its rows and columns are; None at all
        else. Where it is None itself, the optimizer can tell its schedule, and not update.
      multipliers: factors of the learning rate, and so of the weight decay: a tree like the
        parameters', each leaf broadcast against its parameter. By default all are 1.
      frozen: a tree of booleans like the parameters', True at those that stay as they are, of which
        no moments are kept. By default none.

    Raises:
      ValueError: if the warm-up is longer than the run.
    """
    if config.warmup_steps > steps:
        raise ValueError(
            f"optimizer.warmup_steps must be at most the run's {steps} steps, "
            f"not {config.warmup_steps}"
        )
    schedule = _schedule(config, steps)
    rule = _muon(config, matrices, schedule) if config.name == "muon" else _adamw(config, schedule)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    if frozen is not None:
        labels = jax.tree.map(lambda stays: "frozen" if stays else "trained", frozen)
        parts = {"trained": optimizer, "frozen": optax.set_to_zero()}
        optimizer = optax.partition(parts, labels)
    if multipliers is not None:
        scale = optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, multipliers))
        optimizer = optax.chain(optimizer, scale)
    return optimizer, schedule


def without_gradient(
    loss_fn: Callable[[PyTree, jax.Array, PyTree], Any], frozen: PyTree
) -> Callable[[PyTree, jax.Array, PyTree], Any]:
    """`loss_fn(params, key, batch)` with a zero gradient, which is not computed, if `frozen`."""

    def stopped(params: PyTree, key: jax.Array, batch: PyTree) -> Any:
        params = jax.tree.map(
            lambda x, stays: jax.lax.stop_gradient(x) if stays else x, params, frozen
        )
        return loss_fn(params, key, batch)

    return stopped


def decay_mask(params: PyTree) -> PyTree:
    """True where weight decay applies: leaves named `kernel`.

    The name decides, because layers are stacked: a bias has two axes there, as a kernel elsewhere.
    """
    return jax.tree.map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) == "kernel", params
    )


def _adamw(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )


def _muon(
    config: OptimizerConfig, matrices: PyTree | None, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """One schedule for both parts, of which the kernels' is a multiple."""

    def dimensions(params: PyTree) -> PyTree:
        # Where Optax asks which state is a parameter's, the parameters are a node without leaves.
        return matrices if jax.tree.leaves(params) else params

    rule = optax.contrib.muon(
        learning_rate=config.matrix_learning_rate / config.learning_rate,
        weight_decay=config.weight_decay,
        eps=config.eps,
        adam_learning_rate=1.0,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=dimensions,
    )
    return optax.chain(rule, optax.scale_by_schedule(schedule))


def _schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    peak, fall = config.learning_rate, max(1, steps - config.warmup_steps)
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, fall, config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, peak * config.final_fraction, fall),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.decay]()
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])
