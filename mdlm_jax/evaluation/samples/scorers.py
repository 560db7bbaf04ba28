"""Scorers: the likelihood of a text under another model than the one that wrote it.

    score = scorers.scorer("trigram", train, tokenizer, vocab_size)
    nats = score(rows)  # f64[N], of each row

For samples this is called generative perplexity. It measures how predictable a text is to the
scorer, not how good it is: the same frequent words over and over score best. Always report it with
the entropy of the samples and with the score of real text.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.evaluation.bounds import ngrams

Scorer = Callable[[data.Rows], np.ndarray]  # rows -> nats f64[N], summed over each row's tokens

_HUGGING_FACE = "hf:"
_BATCH = 8  # windows at a time


def scorer(spec: str, train: data.Rows, tokenizer: Tokenizer, vocab_size: int) -> Scorer:
    """The scorer that `spec` names.

    Args:
      spec: "trigram", counted on the training split (`ngrams.fit`); or "hf:NAME_OR_FOLDER", a
        causal language model of Hugging Face.
      train: the training split.
      tokenizer: of the rows.
      vocab_size: of the rows; every id is below it.

    Raises:
      ValueError: there is no such scorer, or it cannot be read.
      ImportError: "hf:..." without transformers and torch.
    """
    if spec == "trigram":
        return trigram(train, vocab_size)
    if spec.startswith(_HUGGING_FACE) and spec != _HUGGING_FACE:
        return hugging_face(spec.removeprefix(_HUGGING_FACE), tokenizer)
    raise ValueError(
        f"scorer {spec!r} must be trigram, or hf:NAME_OR_FOLDER of a causal language model"
    )


def trigram(train: data.Rows, vocab_size: int) -> Scorer:
    """The Witten-Bell trigram of the training split, which has no parameters to tune.

    Raises:
      ValueError: as `ngrams.fit`.
    """
    model = ngrams.fit(train, vocab_size, 3)
    return lambda rows: ngrams.token_nats(model, rows).sum(axis=1)


def hugging_face(name: str, tokenizer: Tokenizer) -> Scorer:
    """A causal language model of Hugging Face, run by PyTorch.

    Each row is decoded to text and read by the model's own tokenizer. The row begins with the start
    of text, or else the end of text. A separator of the row becomes the end of text, and is scored
    as such. Rows that are longer than the model's context are scored in windows that overlap by
    half. Divide the score by the tokens of the row, not by the model's tokens: then scorers with
    different vocabularies compare.

    Args:
      name: of the hub, or a folder with model and tokenizer.
      tokenizer: of the rows.

    Raises:
      ImportError: transformers or torch is not installed.
      ValueError: no such model can be read there, or its tokenizer has no start or end of text.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(
            f"scorer 'hf:{name}' needs {error.name}: pip install 'mdlm_jax[interop]'"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        theirs = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForCausalLM.from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"scorer 'hf:{name}': no causal language model with its tokenizer there ({reason})"
        ) from None
    end = theirs.eos_token_id if theirs.eos_token_id is not None else theirs.bos_token_id
    start = theirs.bos_token_id if theirs.bos_token_id is not None else end
    if end is None:
        raise ValueError(f"scorer 'hf:{name}': its tokenizer has no start and no end of text")
    window = getattr(model.config, "max_position_embeddings", None)

    def score(rows: data.Rows) -> np.ndarray:
        parts = [
            (index, part)
            for index, row in enumerate(_texts(rows, tokenizer))
            for part in _windows(_encoded(row, theirs, start, end), window)
        ]
        nats = np.zeros(len(rows))
        for first in range(0, len(parts), _BATCH):
            indices, batch = zip(*parts[first : first + _BATCH], strict=True)
            np.add.at(nats, list(indices), _window_nats(torch, model, batch, end))
        return nats

    return score


def _texts(rows: data.Rows, tokenizer: Tokenizer) -> Iterator[list[str]]:
    """Of each row the texts between its separators; n separators make n + 1 texts."""
    separator = data.special_ids(tokenizer).sep
    for ids in rows.texts():
        documents = np.split(ids, np.flatnonzero(ids == separator))
        yield [data.decode(tokenizer, document) for document in documents]


def _encoded(texts: list[str], theirs: Any, start: int, end: int) -> list[int]:
    ids = [start]
    for i, text in enumerate(texts):
        ids += [end] if i else []
        ids += theirs(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []
    return ids


def _windows(ids: list[int], size: int | None) -> Iterator[tuple[list[int], int]]:
    """Pieces of at most `size` ids, and the position from which each piece is scored.

    Every id but the first is scored once, with at least half a window of context if so much text
    precedes it.
    """
    size = max(size or len(ids), 2)
    scored = 1
    while scored < len(ids):
        first = 0 if scored == 1 else scored - (size - size // 2)
        yield ids[first : first + size], scored - first
        scored = min(first + size, len(ids))


def _window_nats(torch: Any, model: Any, parts: tuple, filler: int) -> np.ndarray:
    """Nats of each piece, f64[n]. A causal model does not see the filler on the right."""
    longest = max(len(ids) for ids, _ in parts)
    tokens = torch.tensor([ids + [filler] * (longest - len(ids)) for ids, _ in parts])
    with torch.inference_mode():
        log_probs = model(input_ids=tokens).logits[:, :-1].float().log_softmax(-1)
    nats = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0].numpy().astype(np.float64)
    place = np.arange(1, longest)
    return np.array(
        [
            each[(place >= first) & (place < len(ids))].sum()
            for each, (ids, first) in zip(nats, parts, strict=True)
        ]
    )
