"""Files of text as rows to be measured, with a given tokenizer and nothing held out."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from mdlm_jax.data.corpora import text_files
from mdlm_jax.data.corpora.documents import whole
from mdlm_jax.data.rows import Rows
from mdlm_jax.data.tokens import tokenization


def read_rows(files: str, tokenizer: Tokenizer, length: int, *, documents: str = "file") -> Rows:
    """All tokens of the files, packed into rows, each token once.

    The last row is padded if the tokens do not fill it. The text is held in memory.

    Args:
      files: globs of text and tables (field "text"), as `Config.files` takes them.
      tokenizer: has a separator, which ends each document.
      length: tokens in a row, L.
      documents: what one document of a .txt is: 'file', 'paragraph' or 'line'.

    Returns:
      Rows of the label -1, which is none.

    Raises:
      ModuleNotFoundError: the package that reads this file system is not installed.
      ValueError: a file is not there or cannot be read (it is named), or holds no text.
    """
    corpus = text_files.open_text_files(
        {"files": files}, documents=documents, text_field="text", label_field=""
    )
    texts = (document.text for document in whole(corpus.read(Path())["train"]))
    encoded = list(tokenization.encode_documents(tokenizer, texts))
    if not encoded:
        raise ValueError(f"files: {files!r} hold no text")
    stream = np.concatenate(encoded).astype(np.int32)
    count = -(-len(stream) // length)
    tokens = np.full(count * length, tokenization.special_ids(tokenizer).pad, np.int32)
    tokens[: len(stream)] = stream
    sizes = np.full(count, length, np.int32)
    sizes[-1] -= len(tokens) - len(stream)
    labels = np.full(count, -1, np.int32)
    is_full = len(tokens) == len(stream)
    return Rows(tokens.reshape(count, length), labels, None if is_full else sizes)
