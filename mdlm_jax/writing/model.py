"""A trained model in a Python program: text in, text and figures out.

model = mdlm_jax.load("runs/quickstart")
model.fill("The city of [MASK] [MASK] lies on the river {mask:3}.")
model.likelihood("The city lies on the river.")
model.denoiser  # for the functions of mdlm_jax.diffusion
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer

from mdlm_jax import data
from mdlm_jax.data import json_text, reading
from mdlm_jax.data.tokens.tokenization import literal
from mdlm_jax.diffusion import Denoiser, Likelihood
from mdlm_jax.diffusion.blocks import BlockDenoiser
from mdlm_jax.host import nearest, parallel
from mdlm_jax.networks import bert
from mdlm_jax.runs import models, workdir
from mdlm_jax.writing import answering, canvases, filling, prompts, requests, sample_files

PyTree = Any
Messages = Sequence[Mapping[str, Any]]

_OPTIONS = [field.name for field in dataclasses.fields(requests.Options)]


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
    """A trained model with its tokenizer, made by `load`.

    Attributes:
      name: what was loaded.
      model: parameters, network, tokenizer and objective, as the commands have them.
      card: the contents of a run's `data.json`; {} for a checkpoint of Hugging Face.
      mesh: the devices that hold the parameters.
    """

    name: str
    model: models.Model
    card: Mapping[str, Any]
    mesh: Mesh

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        at = "" if self.model.step is None else f", {self.model.weights} at step {self.model.step}"
        return (
            f"Model({self.name!r}: {self.model.objective.name}, {count:,} parameters, rows of "
            f"{self.model.length} tokens{at})"
        )

    @property
    def params(self) -> PyTree:
        """The parameters: a nested dict of arrays."""
        return self.model.params

    @property
    def encoder(self) -> bert.Config:
        """The config of the network."""
        return self.model.encoder

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer: from text to tokens and back."""
        return self.model.tokenizer

    @property
    def mask_id(self) -> int:
        """The mask token, as `sample` and `nelbo` take it."""
        return self.encoder.mask_id

    @property
    def denoiser(self) -> Denoiser | BlockDenoiser:
        """A denoiser that closes over the parameters: `(tokens i32[B, L], t f32[B]) -> logits`.

        That of a model of blocks is a `BlockDenoiser`, for the functions of `mdlm_jax.blocks`.

        It works inside and outside of `jit`. JAX treats values that a jitted function closes over
        as constants: they are in memory twice, and other parameters recompile. With a large model,
        or to differentiate, make the parameters an argument and build the denoiser from them
        inside (`denoiser_of`).
        """
        return self.denoiser_of(self.params)

    def denoiser_of(
        self, params: PyTree, *, valid: jax.Array | None = None, label: jax.Array | None = None
    ) -> Denoiser | BlockDenoiser:
        """The denoiser of given parameters, such as the argument of a jitted function.

            jax.jit(lambda params, key, tokens: mdlm_jax.nelbo(
                model.denoiser_of(params), key, tokens, mask_id=model.mask_id
            ))(model.params, key, tokens)

        Args:
          params: a tree like `params`.
          valid: bool[B, L], False at padding, which the network does not see.
          label: i32[B], for a model with classes; -1 for none.
        """
        in_blocks = self.model.family.blocks(self.model.objective)
        if in_blocks is None:
            return bert.denoiser(params, self.encoder, valid=valid, label=label)
        return bert.block_denoiser(
            params,
            self.encoder,
            in_blocks.size,
            valid=valid,
            label=label,
            window=in_blocks.window,
        )

    @overload
    def fill(self, text: str, *, samples: None = None, **options: Any) -> str: ...
    @overload
    def fill(self, text: str, *, samples: int, **options: Any) -> list[str]: ...
    @overload
    def fill(self, text: Sequence[str], *, samples: None = None, **options: Any) -> list[str]: ...
    @overload
    def fill(self, text: Sequence[str], *, samples: int, **options: Any) -> list[list[str]]: ...

    def fill(
        self,
        text: str | Sequence[str],
        *,
        samples: int | None = None,
        seed: int = 0,
        label: str | None = None,
        batch_size: int = 32,
        **options: Any,
    ) -> Any:
        """Fills the gaps of a text: `[MASK]` is one token, `{mask:12}` twelve.

        An empty text asks for a whole row. The model does not know what follows a text. The samples
        are those of `generate`.

        Args:
          text: a text, or several.
          samples: number of samples of each text; None returns the text itself and no list.
          seed: another seed gives another text.
          label: for a model with classes, what the text is about.
          batch_size: rows at a time; changes no sample.
          **options: the fields of `mdlm_jax.writing.requests.Options`: steps, strategy,
            temperature, top_k, top_p, min_p, repetition_penalty, forbid, blocks, guidance,
            end_of_text, length.

        Returns:
          A text; with `samples` a list of texts; for several texts a list of either.

        Raises:
          ValueError: a text has no gap or is longer than a row; an option is unknown or impossible;
            for a causal model, a text goes on behind a gap, or an option is only for masks.
        """
        texts = [text] if isinstance(text, str) else list(text)
        asking = prompts.asking(self.card, self.tokenizer)
        if asking is not None and "" in texts:
            raise ValueError(
                "the model was trained on pairs of a prompt and a response: use answer(prompt), or "
                "give a text with gaps"
            )
        asked = [prompts.Prompt(each, label) for each in texts]
        written = self._write(asked, None, samples, seed, batch_size, options)
        return written[0] if isinstance(text, str) else written

    @overload
    def answer(self, prompt: str | Messages, *, samples: None = None, **options: Any) -> str: ...
    @overload
    def answer(self, prompt: str | Messages, *, samples: int, **options: Any) -> list[str]: ...
    @overload
    def answer(
        self, prompt: Sequence[str], *, samples: None = None, **options: Any
    ) -> list[str]: ...
    @overload
    def answer(self, prompt: Sequence[str], *, samples: int, **options: Any) -> list[list[str]]: ...

    def answer(
        self,
        prompt: str | Messages | Sequence[str],
        *,
        samples: int | None = None,
        seed: int = 0,
        label: str | None = None,
        batch_size: int = 32,
        **options: Any,
    ) -> Any:
        """Answers a prompt, with a model that was trained on pairs.

        Args:
          prompt: a text or several; for a run of conversations also messages, a list of dicts with
            "role" and "content".
          samples: number of answers to each prompt; None returns the answer itself and no list.
          seed: another seed gives another answer.
          label: for a model with classes.
          batch_size: rows at a time; changes no sample.
          **options: as in `fill`.

        Returns:
          A text; with `samples` a list of texts; for several prompts a list of either.

        Raises:
          ValueError: the model was not trained on pairs; a prompt leaves no room for an answer or
            has gaps; or as `fill`.
        """
        asking = prompts.asking(self.card, self.tokenizer)
        if asking is None:
            raise ValueError(
                f"{self.name} was not trained on pairs of a prompt and a response: use "
                "fill(text + '{mask:16}'), which continues a text"
            )
        single = isinstance(prompt, str) or _are_messages(prompt)
        several: Sequence[Any] = [prompt] if single else prompt
        asked = [_prompt(each, label) for each in several]
        for each in asked:
            if not asking.answers(each):
                raise ValueError(f"prompt {each.text[:60]!r} has gaps: use fill(text)")
        written = self._write(asked, asking, samples, seed, batch_size, options)
        return written[0] if single else written

    def likelihood(
        self, text: str | Sequence[str], *, draws: int = 32, seed: int = 0, batch_size: int = 32
    ) -> Likelihood:
        """The likelihood of text: an upper bound of `-log p` with its error.

        It is exact for a model that was trained autoregressively, or in blocks of one token.
        Special tokens that are spelt out are plain text, and none are added. A text longer than a
        row of the training is cut into as few and as even rows as possible, and these know nothing
        of each other.

        Args:
          text: a text, or several; each begins a row.
          draws: corruptions of each row, at least 2; more shrink the error of the masks.
          seed: seed of the draws.
          batch_size: rows at a time.

        Returns:
          A `Likelihood` of rows: nats, their variance, and tokens.

        Raises:
          ValueError: a text has no token, or fewer than 2 draws.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("text is an empty list: give at least one text")
        rows = self._rows(texts)
        of_rows = self.model.family.make_likelihood(
            self.model.objective,
            self.encoder,
            start_id=data.special_ids(self.tokenizer).sep,
            seed=seed,
            draws=draws,
            mesh=self.mesh,
        )
        # A power of two, so that few programs serve texts of any number.
        size = min(batch_size, 1 << (len(rows) - 1).bit_length())
        return of_rows(self.params, rows, size)

    def _rows(self, texts: Sequence[str]) -> data.Rows:
        """Rows of text, filled up with padding that the network does not see."""
        tokenizer, length = literal(self.tokenizer), self.model.length
        split = []
        for text in texts:
            ids = tokenizer.encode(
                json_text.check_characters(text, "text"), add_special_tokens=False
            ).ids
            if not ids:
                raise ValueError(f"text {text[:60]!r} has no token of the model's tokenizer")
            split += answering.split(ids, length)
        tokens = np.full((len(split), length), data.special_ids(tokenizer).pad, np.int32)
        for row, ids in zip(tokens, split, strict=True):
            row[: len(ids)] = ids
        sizes = np.array([len(ids) for ids in split], np.int32)
        return data.Rows(tokens, np.full(len(split), -1, np.int32), sizes)

    def _write(
        self,
        asked: Sequence[prompts.Prompt],
        asking: prompts.Asking | None,
        samples: int | None,
        seed: int,
        batch_size: int,
        options: Mapping[str, Any],
    ) -> list[Any]:
        if samples is not None and samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples!r}")
        if not asked:
            return []
        request = requests.plan(
            self.model,
            asked,
            _options(options),
            asking=asking,
            label_names=self.card.get("label_names", ()),
        )
        count = samples or 1
        batches = filling.fill(
            self.params,
            self.encoder,
            self.mesh,
            request.method,
            request.canvas,
            labels=request.labels,
            samples=count,
            batch_size=batch_size,
            seed=seed,
        )
        written = list(self._texts(batches, request.canvas, count))
        if samples is None:
            return written
        return [written[i : i + count] for i in range(0, len(written), count)]

    def _texts(
        self, batches: Iterator[list[filling.Filled]], canvas: canvases.Canvas, samples: int
    ) -> Iterator[str]:
        for batch in batches:
            for filled in batch:
                row = filled.number // samples
                shown = sample_files.text_places(filled, canvas.fill[row], canvas.shown[row])
                yield data.decode(self.tokenizer, filled.tokens[shown])


def load(
    name: str | os.PathLike,
    *,
    weights: str | None = None,
    step: int | str | None = None,
    mesh: Mesh | None = None,
) -> Model:
    """Loads a trained model, wherever it lies.

    Args:
      name: the folder of a run or of what `export` wrote, a folder of Hugging Face's files, or a
        name of its hub.
      weights: of a run, 'ema' (averaged; the default) or 'params'.
      step: of a run, the number of a checkpoint, or 'best' by validation; by default the newest.
      mesh: from `mdlm_jax.host.parallel.make_mesh`, over which the parameters and the rows are
        spread; by default the first device of this process.

    Raises:
      ValueError: there is nothing that can be read, or `weights` or `step` of what is no run.
      FileNotFoundError: no such folder, or a run without such a checkpoint.
      ImportError: Hugging Face's files need the extra `interop`.
    """
    place = os.fspath(name)
    if mesh is None:
        mesh = parallel.make_mesh(devices=jax.local_devices()[:1])
    model = models.load(place, mesh, weights=weights, step=step)
    card = {} if model.weights is None else workdir.data_card(reading.path(place))
    return Model(place, model, card, mesh)


def _options(given: Mapping[str, Any]) -> requests.Options:
    if unknown := sorted(given.keys() - {*_OPTIONS}):
        meant = nearest.meant(unknown[0], _OPTIONS)
        raise ValueError(f"unknown option {unknown[0]}{meant}: there are {', '.join(_OPTIONS)}")
    return requests.Options(**given)


def _are_messages(prompt: Any) -> bool:
    return bool(prompt) and all(isinstance(each, Mapping) for each in prompt)


def _prompt(asked: str | Messages, label: str | None) -> prompts.Prompt:
    if isinstance(asked, str):
        return prompts.Prompt(asked, label)
    messages = data.check_messages(asked, "messages")
    return prompts.Prompt(messages[-1]["content"], label, messages)
