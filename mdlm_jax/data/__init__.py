"""Corpora, tokenizers and packed, deterministic batches; knows no network.

`prepare(Config(...))` gives rows of tokens, made once and cached; `train_batches` and
`eval_batches` read them.
"""

from mdlm_jax.data.batches import TrainBatches, eval_batches, train_batches
from mdlm_jax.data.corpora import SOURCES, Corpus, Document
from mdlm_jax.data.packing import Rows, pack
from mdlm_jax.data.preparation import Config, Prepared, default_cache_dir, load_prepared, prepare
from mdlm_jax.data.tokenization import (
    SpecialIds,
    decode,
    encode_documents,
    load_tokenizer,
    special_ids,
    train_tokenizer,
)

__all__ = [
    "SOURCES",
    "Config",
    "Corpus",
    "Document",
    "Prepared",
    "Rows",
    "SpecialIds",
    "TrainBatches",
    "decode",
    "default_cache_dir",
    "encode_documents",
    "eval_batches",
    "load_prepared",
    "load_tokenizer",
    "pack",
    "prepare",
    "special_ids",
    "train_batches",
    "train_tokenizer",
]
