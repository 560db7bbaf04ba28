"""AdamW with a clipped gradient, warm-up and decay, all from optax."""

import dataclasses
import math
from typing import Any, Literal

import jax
import optax

PyTree = Any

DECAYS = ("cosine", "linear", "constant")
DECAYED_LEAVES = ("kernel", "embedding")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101).

    Attributes:
      learning_rate: the peak, reached after the warm-up.
      warmup_steps: steps of linear rise from 0.
      decay: the shape of the fall from the peak to the end of the run.
      final_fraction: the last learning rate as a fraction of the peak; unused if constant.
      weight_decay: multiplied by the learning rate; on kernels and embeddings alone.
      b1: decay of the mean of the gradients.
      b2: decay of the mean of their squares.
      eps: added to the root of the latter.
      clip_norm: the largest global norm of the gradient; `inf` never clips.

    Raises:
      ValueError: if a value is out of its range.
    """

    learning_rate: float = 3e-4
    warmup_steps: int = 1000
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: float = 0.1
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    clip_norm: float = 1.0

    def __post_init__(self):
        checks = {
            "learning_rate": (0 < self.learning_rate < math.inf, "be positive"),
            "warmup_steps": (self.warmup_steps >= 0, "be at least 0"),
            "decay": (self.decay in DECAYS, f"be one of {', '.join(DECAYS)}"),
            "final_fraction": (0 <= self.final_fraction <= 1, "lie in [0, 1]"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "be at least 0"),
            "b1": (0 <= self.b1 < 1, "lie in [0, 1)"),
            "b2": (0 <= self.b2 < 1, "lie in [0, 1)"),
            "eps": (0 < self.eps < math.inf, "be positive"),
            "clip_norm": (self.clip_norm > 0, "be positive"),
        }
        for name, (good, demand) in checks.items():
            if not good:
                raise ValueError(f"optimizer.{name} must {demand}, not {getattr(self, name)!r}")


def make_optimizer(
    config: OptimizerConfig, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer of a run of `steps` steps, and its learning rate by number of updates.

    Raises:
      ValueError: if the warm-up is longer than the run.
    """
    if config.warmup_steps > steps:
        raise ValueError(
            f"optimizer.warmup_steps must be at most the run's {steps} steps, "
            f"not {config.warmup_steps}"
        )
    schedule = _schedule(config, steps)
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw), schedule


def decay_mask(params: PyTree) -> PyTree:
    """True where weight decay applies: leaves named `kernel` or `embedding`.

    The name decides, because layers are stacked: a bias has two axes there, as a kernel elsewhere.
    """
    return jax.tree.map_with_path(
        lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) in DECAYED_LEAVES, params
    )


def _schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    peak, fall = config.learning_rate, max(1, steps - config.warmup_steps)
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, fall, config.final_fraction),
        "linear": lambda: optax.linear_schedule(peak, peak * config.final_fraction, fall),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.decay]()
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])
