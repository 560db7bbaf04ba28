"""Corpora, tokenizers and deterministic batches of rows; knows no network.

`prepare(Config(...))` gives rows of tokens, made once and cached; `train_batches` and
`eval_batches` read them. Modules are loaded when they are first used: a config needs neither
tokenizers nor grain.

| module | what it holds |
|---|---|
| `config` | what is asked of the data |
| `corpora` | where documents come from |
| `tokens` | from documents to tokens, and back |
| `packing` | rows of one length: documents back to back, or one a row |
| `rows` | which tokens of rows count for what |
| `preparation` | from a corpus to rows on disk, made once |
| `beam_preparation` | the same tokens, made on many machines by Apache Beam |
| `prepared` | what lies on disk, read |
| `batches` | batches as functions of (seed, step) or of rows |
| `text_rows` | files of text as rows to be measured |
| `reading` | text that people wrote, from a file to strings |
| `json_text` | JSON that people wrote |
| `cache` | where prepared data is kept |
| `stores` | folders and buckets that several machines see |
| `claims` | work that one machine does for all |
| `hub` | the Hugging Face hub, asked |
| `progress` | progress of long passes over text |
"""

import importlib

from mdlm_jax import lazy

_NAMES = {
    "batches": (
        "TrainBatches",
        "eval_batches",
        "train_batches",
    ),
    "corpora.chat": (
        "ChatTemplate",
        "check_messages",
    ),
    "config": ("Config",),
    "corpora.documents": (
        "Corpus",
        "Document",
    ),
    "corpora.sources": ("SOURCES",),
    "packing": (
        "pack",
        "pad",
        "pair",
    ),
    "preparation": (
        "find_prepared",
        "prepare",
    ),
    "prepared": (
        "Prepared",
        "load_prepared",
    ),
    "rows": ("Rows",),
    "text_rows": ("read_rows",),
    "tokens.tokenization": (
        "SpecialIds",
        "decode",
        "encode_documents",
        "mask_token",
        "special_ids",
        "token_pieces",
        "vocabulary_size",
    ),
    "tokens.loading": ("load_tokenizer",),
    "tokens.training": ("train_tokenizer",),
    "tokens.unknowns": ("unknown_warning",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOMES)


_load, __dir__ = lazy.modules(__name__, __path__, __all__)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"mdlm_jax.data.{_HOMES[name]}"), name)
    return _load(name)
