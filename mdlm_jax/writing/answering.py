"""Likelihoods and continuations of text by a trained model."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.data.tokens.tokenization import literal
from mdlm_jax.diffusion import strategies
from mdlm_jax.evaluation.bounds import continuations, likelihoods
from mdlm_jax.evaluation.bounds.continuations import Continuations, Pair
from mdlm_jax.runs.experiment import SCHEDULES
from mdlm_jax.runs.models import Model
from mdlm_jax.runs.sampler import Method
from mdlm_jax.runs.shaping import Shaping
from mdlm_jax.writing import canvases, decoding, filling


@dataclasses.dataclass(frozen=True)
class Answerer:
    """Scores and writes text with a model. Calls are independent of each other.

    Special tokens that are spelt out in a text are plain text, and none are added.

    Attributes:
      model: from `models.load`, on the mesh.
      mesh: of the devices of this process.
      draws: corruptions of each row that is scored, at least 2.
      strategy: how answers are written, as in `decoding.strategy`. A causal model writes from left
        to right: with 'greedy' the most likely tokens, otherwise drawn ones.
      steps: network evaluations of an answer; a causal model takes one a token.
      batch_size: rows at a time.
      seed: of all noise.

    Raises:
      ValueError: there is no such strategy.
    """

    model: Model
    mesh: Mesh
    draws: int = 32
    strategy: str = "greedy"
    steps: int = 64
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self):
        self._method()

    def continuations(self, pairs: Sequence[tuple[str, str]], *, greedy: bool) -> Continuations:
        """The likelihoods of continuations given their contexts; see `log_likelihoods`.

        A continuation cannot be scored if it has no token of its own, is longer than a row, or
        holds the mask. Then its nats are infinite with the error 0, and greedy filling does not
        write it. The others are scored as without it.

        Args:
          pairs: contexts and continuations; `encode_pair` splits them into tokens.
          greedy: whether to report also which of them greedy filling writes.
        """
        tokenizer = literal(self.model.tokenizer)
        encoded = [self._scorable(tokenizer, *pair) for pair in pairs]
        there = np.array([pair is not None for pair in encoded], bool)
        scored = self._score([pair for pair in encoded if pair is not None], greedy=greedy)
        return Continuations(
            nats=_spread(scored.nats, there, np.inf),
            error=_spread(scored.error, there, 0.0),
            greedy=_spread(scored.greedy, there, False) if greedy else None,
            cut=_spread(scored.cut, there, 0),
        )

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """The likelihood of each whole text: f64[N], nats, an upper bound of `-log p`.

        A text longer than a row is cut into as few and as even rows as possible, and these know
        nothing of each other. Every token counts once.
        """
        tokenizer = literal(self.model.tokenizer)
        rows = [split(_encode(tokenizer, text), self.model.length) for text in texts]
        scored = self._score([((), row) for row in itertools.chain(*rows)], greedy=False)
        nats = np.zeros(len(texts))
        np.add.at(nats, np.repeat(np.arange(len(texts)), [len(r) for r in rows]), scored.nats)
        return nats

    def answers(self, contexts: Sequence[str], *, tokens: int) -> list[str]:
        """Continues each context, up to the first separator.

        The canvas is the context, the masks to be filled, and further masks up to a row of the
        model's length, for the unknown text behind. A run of padded rows gets a separator and
        padding instead. A context that leaves no room for the answer loses its start.

        Args:
          contexts: N texts.
          tokens: the most tokens of an answer, fewer than a row has.

        Raises:
          ValueError: more tokens than that.
        """
        length, tokenizer = self.model.length, self.model.tokenizer
        if not 1 <= tokens < length:
            raise ValueError(f"an answer must have 1 to {length - 1} tokens, not {tokens}")
        plain = literal(tokenizer)
        kept = [_encode(plain, context)[-(length - tokens) :] for context in contexts]
        canvas = _canvas(kept, tokens, length, self.model.encoder.mask_id)
        if self.model.padded:
            canvas = canvases.as_whole_rows(canvas, tokenizer)
        if self.model.objective.keep:
            canvas = canvases.as_kept(canvas, tokenizer)
        separator = data.special_ids(tokenizer).sep
        answers = []
        for batch in filling.fill(
            self.model.params,
            self.model.encoder,
            self.mesh,
            self._method(),
            canvas,
            batch_size=self.batch_size,
            seed=self.seed,
        ):
            for row in batch:
                written = row.tokens[canvas.fill[row.number]].tolist()
                before = itertools.takewhile(lambda token: token != separator, written)
                answers.append(data.decode(tokenizer, list(before)))
        return answers

    def _scorable(self, tokenizer: Tokenizer, context: str, continuation: str) -> Pair | None:
        try:
            pair = encode_pair(tokenizer, context, continuation)
        except ValueError:
            return None
        fits = len(pair[1]) <= self.model.length and self.model.encoder.mask_id not in pair[1]
        return pair if fits else None

    def _score(self, pairs: list[Pair], *, greedy: bool) -> Continuations:
        model = self.model
        in_blocks = model.family.blocks(model.objective)
        of_batch = (
            likelihoods.denoiser_of(model.encoder)
            if in_blocks is None
            else likelihoods.block_denoiser_of(model.encoder, *in_blocks)
        )
        return continuations.log_likelihoods(
            of_batch,
            model.params,
            pairs,
            mask_id=model.encoder.mask_id,
            max_length=model.length,
            time_conditioning=model.encoder.time_conditioning,
            draws=self.draws,
            seed=self.seed,
            batch_size=self.batch_size,
            greedy=greedy,
            schedule=SCHEDULES[model.objective.schedule](),
            start_id=data.special_ids(model.tokenizer).sep if model.family.is_causal else None,
            mesh=self.mesh,
            block_size=None if in_blocks is None else in_blocks.size,
        )

    def _method(self) -> Method:
        """How an answer of so many tokens is written."""
        special = data.special_ids(self.model.tokenizer)
        schedule = SCHEDULES[self.model.objective.schedule]()
        method = Method(
            strategy=decoding.strategy(self.strategy, schedule),
            shaping=Shaping(),
            steps=self.steps,
            end_id=special.sep,
            pad_id=special.pad,
            in_blocks=self.model.family.blocks(self.model.objective),
        )
        if not self.model.family.is_causal:
            return method
        return dataclasses.replace(
            method,
            strategy=strategies.left_to_right(schedule),
            shaping=Shaping(temperature=0.0 if self.strategy == "greedy" else 1.0),
            steps=self.model.length,
            start_id=special.sep,
        )


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """The ids of both, split as lm-evaluation-harness does it.

    White space at the end of the context goes to the continuation. Both are encoded as one text,
    and the tokens beyond those of the context alone are the continuation.

    Raises:
      ValueError: there are none.
    """
    stripped = context.rstrip()
    prompt = _encode(tokenizer, stripped)
    whole = _encode(tokenizer, context + continuation)
    if len(whole) <= len(prompt):
        raise ValueError(
            f"continuation {continuation!r} of {stripped[-40:]!r} adds no token of the model's "
            "tokenizer to it"
        )
    return whole[: len(prompt)], whole[len(prompt) :]


def _spread(values: np.ndarray, there: np.ndarray, missing: Any) -> np.ndarray:
    """The values where there are any, and `missing` elsewhere."""
    whole = np.full(len(there), missing, values.dtype)
    whole[there] = values
    return whole


def split(ids: list[int], length: int) -> list[list[int]]:
    """The ids in as few and as even parts of at most `length` as possible."""
    count = -(-len(ids) // length)
    places = [len(ids) * part // count for part in range(count)]
    return [ids[first:last] for first, last in itertools.pairwise([*places, len(ids)])]


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops; empty stops stop nothing."""
    return text[: min((text.find(stop) for stop in stops if stop and stop in text), default=None)]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _canvas(kept: Sequence[list[int]], blanks: int, length: int, mask_id: int) -> canvases.Canvas:
    """Rows of kept tokens, then blanks, then masks that are not wanted."""
    tokens = np.full((len(kept), length), mask_id, np.int32)
    for row, ids in zip(tokens, kept, strict=True):
        row[: len(ids)] = ids
    sizes = np.array([len(ids) for ids in kept], np.int32)[:, None]
    place = np.arange(length)
    fill = (place >= sizes) & (place < sizes + blanks)
    return canvases.Canvas(tokens=tokens, fill=fill, shown=place < sizes + blanks)
