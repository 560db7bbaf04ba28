"""The JSON of answers, whole and piece by piece, as OpenAI's API has it."""

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mdlm_jax.serving.offering.offers import Offer
from mdlm_jax.serving.offering.texts import Row, Token
from mdlm_jax.writing import requests

Json = dict[str, Any]
Tokens = Sequence[Token] | None


class Shape(NamedTuple):
    """How one of the endpoints writes its answers.

    Attributes:
      prefix: of the id.
      whole: the kind of the object that is a whole answer.
      piece: the kind of those that are pieces of one.
      choice: `(index, text, reason, tokens) -> JSON` of a whole choice.
      delta: the same of a piece of one.
    """

    prefix: str
    whole: str
    piece: str
    choice: Callable[[int, str, str | None, Tokens], Json]
    delta: Callable[[int, str, str | None, Tokens], Json]


def _text(index: int, text: str, reason: str | None, tokens: Tokens) -> Json:
    logprobs = None
    if tokens is not None:
        logprobs = {
            "tokens": [token.piece for token in tokens],
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": None,
            "text_offset": [token.offset for token in tokens],
        }
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _talk(of: str) -> Callable[[int, str, str | None, Tokens], Json]:
    def choice(index: int, text: str, reason: str | None, tokens: Tokens) -> Json:
        content = None if tokens is None else [_content(token) for token in tokens]
        return {
            "index": index,
            of: {"role": "assistant", "content": text},
            "logprobs": None if content is None else {"content": content, "refusal": None},
            "finish_reason": reason,
        }

    return choice


def _content(token: Token) -> Json:
    return {
        "token": token.piece,
        "logprob": token.log_prob,
        "bytes": [*token.piece.encode()],
        "top_logprobs": [],
    }


COMPLETION = Shape("cmpl", "text_completion", "text_completion", _text, _text)
CHAT = Shape(
    "chatcmpl", "chat.completion", "chat.completion.chunk", _talk("message"), _talk("delta")
)


class Head(NamedTuple):
    """What all objects of an answer begin with.

    Attributes:
      shape: of the endpoint.
      id: of the answer.
      created: seconds since 1970.
      offer: the model that writes it.
      fingerprint: of all that decides a bit of its rows.
      seed: of all noise: the same request with it gives the same text of the same fingerprint.
    """

    shape: Shape
    id: str
    created: int
    offer: Offer
    fingerprint: str
    seed: int

    def json(self, kind: str) -> Json:
        """The fields.

        Args:
          kind: of the object.
        """
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.offer.name,
            "system_fingerprint": self.fingerprint,
            "seed": self.seed,
        }


def head(shape: Shape, offer: Offer, rows: Sequence[Row]) -> Head:
    """That of a new answer."""
    lengths = sorted({len(row.job.tokens) for row in rows})
    fingerprint = "+".join(offer.fingerprints[length] for length in lengths)
    name = f"{shape.prefix}-{secrets.token_hex(12)}"
    return Head(shape, name, int(time.time()), offer, fingerprint, rows[0].job.seed)


def of_model(offer: Offer) -> Json:
    """A model, with what can be asked of it."""
    model = offer.model
    return {
        "id": offer.name,
        "object": "model",
        "created": offer.created,
        "owned_by": "mdlm_jax",
        "fingerprints": {str(length): told for length, told in offer.fingerprints.items()},
        "objective": model.objective.name,
        "answers": offer.asking is not None,
        "lengths": [*offer.lengths],
        "strategies": [*offer.strategies],
        "steps": offer.defaults.steps or requests.STEPS,
        "strategy": offer.defaults.strategy,
        "labels": [*offer.label_names] if model.encoder.classes else [],
    }
