"""The model that EleutherAI's lm-evaluation-harness asks: `mdlm_jax` in its registry.

import lm_eval
import mdlm_jax.measuring.lm_eval_adapter  # registers it

lm_eval.simple_evaluate("mdlm_jax", {"name": "runs/mine", "draws": 64}, tasks=["piqa"])
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from mdlm_jax.host import parallel
from mdlm_jax.runs import models
from mdlm_jax.writing.answering import Answerer, cut_at

_ANSWER = 256  # tokens where a task does not say, as of the harness' own models
_ANSWER_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@register_model("mdlm_jax")
class MaskedDiffusion(LM):
    """A model of this library, in one process, on all of its devices.

    Attributes:
      answerer: scores and writes.
      errors: the standard error of every continuation's likelihood so far, in nats.
      cut: how many of them have a context that lost its start.
      unscored: how many others could not be scored. They count as impossible.
    """

    def __init__(self, name: str, *, weights: str | None = None, **settings: Any):
        """Loads it.

        Args:
          name: the folder of a run or a checkpoint of Hugging Face, as in `models.load`.
          weights: for a run, 'ema' (the default) or 'params'.
          **settings: of `Answerer`: draws, strategy, steps, batch_size, seed.

        Raises:
          ValueError, FileNotFoundError, ImportError: as `models.load` and `Answerer`.
        """
        super().__init__()
        mesh = parallel.make_mesh()
        self.answerer = Answerer(models.load(name, mesh, weights=weights), mesh, **settings)
        self.errors: list[float] = []
        self.cut = self.unscored = 0

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Minus the NELBO of each (context, continuation), and whether greedy filling writes it.

        A continuation that cannot be scored has -inf and is never chosen; a line on stderr says so.
        """
        pairs = [request.args for request in requests]
        scored = self.answerer.continuations(pairs, greedy=True)
        there = np.isfinite(scored.nats)
        self.errors += scored.error[there].tolist()
        self.cut += int(np.sum(scored.cut > 0))
        self.unscored += int(np.sum(~there))
        if not there.all():
            context, continuation = pairs[int(np.argmin(there))]
            print(
                f"note: {np.sum(~there):,} of {len(pairs):,} continuations have no token of their "
                "own, more than a row, or the mask, and count as impossible: "
                f"{continuation[:40]!r} of {context[-40:]!r}",
                file=sys.stderr,
            )
        return list(zip((-scored.nats).tolist(), scored.greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Minus the NELBO of each whole text."""
        return (-self.answerer.texts([request.args[0] for request in requests])).tolist()

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Continues each context, up to the first of its stops.

        The answerer decides how tokens are drawn, not the task (`do_sample`, `temperature`). An
        answer has at most half a row; a line on stderr says so if a task asks for more.
        """
        longest = self.answerer.model.length // 2
        asked = [_tokens(request.args[1]) for request in requests]
        if max(asked, default=0) > longest:
            print(
                f"note: answers have {longest} tokens at most, half a row, where tasks ask for "
                f"{max(asked)}",
                file=sys.stderr,
            )
        answers = [""] * len(requests)
        for tokens in sorted({min(each, longest) for each in asked}):
            mine = [i for i, each in enumerate(asked) if min(each, longest) == tokens]
            texts = self.answerer.answers([requests[i].args[0] for i in mine], tokens=tokens)
            for i, text in zip(mine, texts, strict=True):
                answers[i] = cut_at(text, _stops(requests[i].args[1]))
        return answers


def _tokens(wishes: dict[str, Any]) -> int:
    return next((int(wishes[key]) for key in _ANSWER_KEYS if wishes.get(key)), _ANSWER)


def _stops(wishes: dict[str, Any]) -> list[str]:
    stops = wishes.get("until") or []
    return [stops] if isinstance(stops, str) else list(stops)
