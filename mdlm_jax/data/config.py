"""What is asked of the data: which text, which tokens, which rows."""

import dataclasses
import re
from pathlib import Path

from mdlm_jax.data.corpora.sources import SOURCES

DOCUMENTS = ("file", "paragraph", "line")
SPLIT_BY = ("documents", "position")
ROWS = ("packed", "padded")
TOKENIZERS = ("wordpiece", "bpe", "characters")  # that are trained here
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # their ids 0..4

# name[/config][/version], as TensorFlow Datasets spells it; the version after a colon too.
_TFDS_NAME = re.compile(r"[A-Za-z]\w*(/[\w.\-]+){0,2}(:[\d.]+)?")

# Fields that say how a kind of source is read; of any other kind they would do nothing.
_OF_TEXT_FILES = ("files", "validation_files", "test_files", "documents")
_OF_FIELDS = ("text_field", "label_field", "prompt_field")
_OF_MESSAGES = ("messages_field", "chat_template")
OF_HELD_OUT = ("held_out", "split_by")


@dataclasses.dataclass(frozen=True)
class Config:
    """What text, and how it becomes rows.

    Attributes:
      source: 'wikipedia_summaries' (the embedded corpus), 'text_files', or the name of a dataset of
        TensorFlow Datasets ('lm1b', 'wiki40b/en'). If `files` are named, it defaults to
        'text_files'.
      files: for text_files, the training text: globs separated by commas ('books/*.txt,
        gs://bucket/notes-*.jsonl.gz'). Files end in .txt (.text, .md) or .jsonl (.ndjson,
        .jsonlines, .json with an object a line), optionally with .gz, or in .parquet. A folder is
        one that `save_to_disk` of Hugging Face `datasets` wrote; a DatasetDict brings its splits.
      validation_files: the same for the validation split; '' holds the split out of the training
        text.
      test_files: the same for the test split.
      documents: for text_files, what one document of a .txt is: 'file', 'paragraph' (ended by blank
        lines) or 'line'. If documents are held out by a hash, one must fit in memory.
      text_field: for .jsonl, tables and TensorFlow Datasets, the field or column with the text.
      label_field: the field or column with the label, a string or an integer; '' for no labels.
      prompt_field: the field or column with the prompt to which the text is the response. Only
        responses of such pairs are masked and learned. It needs rows 'padded'. '' for text alone.
      messages_field: for .jsonl and tables, the field or column with a list of `{"role",
        "content"}`. The last message, the assistant's, is the response, and those before it are the
        prompt. '' for none.
      chat_template: for messages, the path of a Jinja file that writes them out as Hugging Face's
        chat templates do, or of a tokenizer_config.json that holds one. '' for a plain template.
      held_out: share of the training text that becomes each of validation and test, if the source
        has no such split.
      split_by: how splits are held out: 'documents' (by a hash of each document's text) or
        'position' (the last characters are test, those before them validation; documents may be
        cut, as is usual with text8 and single books). If a hash leaves a split without a document,
        as with a single file, 'documents' means 'position'.
      tokenizer: 'wordpiece', 'bpe' or 'characters', trained on the training text (its first 2**28
        characters); or the path of a tokenizer.json, a folder that holds one or BERT's vocab.txt,
        or a name of the Hugging Face hub ('google-bert/bert-base-uncased').
      vocab_size: the most entries of a tokenizer that is trained. A given tokenizer has its own.
      lowercase: whether a tokenizer that is trained folds case.
      length: tokens in a row.
      rows: 'packed' (documents back to back) or 'padded' (one document or pair a row, cut if it is
        longer).

    Raises:
      ValueError: a value is impossible, or does nothing with the others; the field is named first.
    """

    source: str = "wikipedia_summaries"
    files: str = ""
    validation_files: str = ""
    test_files: str = ""
    documents: str = "file"
    text_field: str = "text"
    label_field: str = ""
    prompt_field: str = ""
    messages_field: str = ""
    chat_template: str = ""
    held_out: float = 0.05
    split_by: str = "documents"
    tokenizer: str = "wordpiece"
    vocab_size: int = 4096
    lowercase: bool = True
    length: int = 128
    rows: str = "packed"

    def __post_init__(self):
        if self.files.strip() and self.source == Config.source:
            object.__setattr__(self, "source", "text_files")
        self._check_source()
        self._check_tokenizer()
        for name, accepted in (("documents", DOCUMENTS), ("split_by", SPLIT_BY), ("rows", ROWS)):
            if getattr(self, name) not in accepted:
                raise ValueError(
                    f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}"
                )
        if not 0 < self.held_out < 0.5:
            raise ValueError(f"held_out must be above 0 and below 0.5, got {self.held_out!r}")
        if not self.text_field:
            raise ValueError("text_field must name the field of the text, got ''")
        if self.length < 2:
            raise ValueError(f"length must be at least 2 tokens, got {self.length!r}")
        self._check_pairs()

    @property
    def pairs(self) -> bool:
        """Whether the documents are supervised pairs."""
        return bool(self.prompt_field or self.messages_field)

    @property
    def has_padding(self) -> bool:
        """Whether rows hold padding, that batches tell in "valid"; a pair fills its row."""
        return self.rows == "padded" and not self.pairs

    def _check_pairs(self) -> None:
        if not self.messages_field:
            self.refuse_idle(("chat_template",), "data without messages_field")
        if not self.pairs:
            return
        if self.messages_field:
            others = f"messages_field {self.messages_field!r}, which holds prompt and response"
            self.refuse_idle(("text_field", "prompt_field"), others)
        if self.prompt_field == self.text_field:
            raise ValueError(
                "prompt_field and text_field must name two fields, the prompt's and the "
                f"response's, got {self.text_field!r} for both"
            )
        if self.rows != "padded":
            raise ValueError(
                "rows must be 'padded' for pairs of a prompt and a response (prompt_field, "
                f"messages_field), got {self.rows!r}"
            )
        if self.split_by != "documents":
            raise ValueError(
                "split_by must be 'documents' for pairs of a prompt and a response (prompt_field, "
                f"messages_field), got {self.split_by!r}"
            )

    def _check_source(self) -> None:
        if self.source == "text_files":
            if not self.files.strip():
                raise ValueError(
                    "files must name the training text of source 'text_files': globs of .txt, "
                    ".jsonl or .parquet, or folders of saved datasets, separated by commas, got ''"
                )
            if self.validation_files and self.test_files:
                both = "source 'text_files' with validation_files and test_files"
                self.refuse_idle(OF_HELD_OUT, both)
            return
        if self.source not in SOURCES and not _TFDS_NAME.fullmatch(self.source):
            raise ValueError(
                f"source must be one of {', '.join(SOURCES)}, text_files, or a name of TensorFlow "
                f"Datasets ('lm1b', 'wiki40b/en'), got {self.source!r}"
            )
        only = f"source {self.source!r}; it is for 'text_files'"
        self.refuse_idle((*_OF_TEXT_FILES, *_OF_MESSAGES), only)
        if self.source in SOURCES:
            kinds = "'text_files' and TensorFlow Datasets"
            self.refuse_idle(_OF_FIELDS, f"source {self.source!r}; it is for {kinds}")

    def _check_tokenizer(self) -> None:
        may_be_given = "/" in self.tokenizer or Path(self.tokenizer).exists()
        if self.tokenizer not in TOKENIZERS and not may_be_given:
            raise ValueError(
                f"tokenizer must be one of {', '.join(TOKENIZERS)}, the path of a tokenizer.json "
                f"or its folder, or a name of the Hugging Face hub, got {self.tokenizer!r}"
            )
        specials = len(SPECIAL_TOKENS)
        if self.vocab_size <= specials:
            raise ValueError(
                f"vocab_size must exceed the {specials} special tokens, got {self.vocab_size!r}"
            )

    def refuse_idle(self, names: tuple[str, ...], of: str) -> None:
        """Refuses fields that do nothing, but are not at their defaults.

        Args:
          names: fields.
          of: what they do nothing for.

        Raises:
          ValueError: names the first such field.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name} does nothing for {of}: leave it at {defaults[name]!r}, "
                    f"got {getattr(self, name)!r}"
                )
