"""Corpora, tokenizers and deterministic batches of rows; knows no network.

`prepare(Config(...))` gives rows of tokens, made once and cached; `train_batches` and
`eval_batches` read them.
"""

from mdlm_jax.data.batches import TrainBatches, eval_batches, train_batches
from mdlm_jax.data.chat import ChatTemplate, check_messages
from mdlm_jax.data.config import Config
from mdlm_jax.data.corpora import SOURCES, Corpus, Document
from mdlm_jax.data.packing import Rows, pack, pad, pair
from mdlm_jax.data.preparation import (
    Prepared,
    default_cache_dir,
    find_prepared,
    load_prepared,
    prepare,
)
from mdlm_jax.data.text_rows import read_rows
from mdlm_jax.data.tokenization import (
    SpecialIds,
    decode,
    encode_documents,
    mask_token,
    special_ids,
    token_pieces,
    vocabulary_size,
)
from mdlm_jax.data.tokenizer_loading import load_tokenizer
from mdlm_jax.data.tokenizer_training import train_tokenizer

__all__ = [
    "SOURCES",
    "ChatTemplate",
    "Config",
    "Corpus",
    "Document",
    "Prepared",
    "Rows",
    "SpecialIds",
    "TrainBatches",
    "check_messages",
    "decode",
    "default_cache_dir",
    "encode_documents",
    "eval_batches",
    "find_prepared",
    "load_prepared",
    "load_tokenizer",
    "mask_token",
    "pack",
    "pad",
    "pair",
    "prepare",
    "read_rows",
    "special_ids",
    "token_pieces",
    "train_batches",
    "train_tokenizer",
    "vocabulary_size",
]
