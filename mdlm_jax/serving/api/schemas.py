"""What a request may hold. A field that is not here is refused, and so is one of another type."""

from typing import Annotated, Any, Literal

import pydantic

from mdlm_jax.writing import requests

_Whole = Annotated[int, pydantic.Field(ge=1)]
_Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
_Seed = Annotated[int, pydantic.Field(ge=0, lt=2**64)]
_Seconds = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
_Stop = Annotated[str, pydantic.Field(min_length=1)]
_Stops = Annotated[list[_Stop], pydantic.Field(max_length=4)]
# Penalties that this sampler does not have: their neutral values alone.
_Zero = Annotated[float, pydantic.Field(ge=0, le=0)]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """Of a stream.

    Attributes:
      include_usage: whether the last event tells the usage.
    """

    include_usage: bool = False


class Options(_Strict):
    """How text is written: fields of OpenAI's API, and below them those of this library.

    Attributes:
      model: name of the model.
      n: answers to each prompt.
      seed: of all noise; the server draws one where none is given, and tells it.
      stop: the answer ends before the first of these.
      temperature: of the draws; 0 takes the most likely token.
      top_p: the probability that the tokens hold among which it is drawn.
      stream: whether the answer comes piece by piece.
      stream_options: of a stream.
      user: by which several versions of a model share the requests, as the header X-Request-Key.
      frequency_penalty: 0.
      presence_penalty: 0.
      steps: the most network evaluations.
      strategy: decides what each step writes, as `threshold(0.9)`.
      blocks: parts that are filled one after the other.
      length: of the row, one of those that the server has.
      top_k: draws among this many of the most likely tokens.
      min_p: drops tokens less than this many times as likely as the best.
      repetition_penalty: above 1 makes tokens of the row less likely.
      forbid: tokens that are never written.
      guidance: weight of classifier-free guidance.
      label: for a model with classes.
      end_of_text: whether the separator between texts ends a text.
      timeout: seconds after which the request is given up.
      policy: "pinned" keeps steps and model whatever the load is, so that it may be turned away;
        "adaptive", the default, takes what the server's policy gives.
      canvases: whether a stream also tells, as events of the name "canvas", what is written
        already anywhere, and may still be taken back.
    """

    model: str
    n: _Whole | None = None
    seed: _Seed | None = None
    stop: _Stop | _Stops | None = None
    temperature: _Number | None = None
    top_p: _Number | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: _Zero | None = None
    presence_penalty: _Zero | None = None

    steps: _Whole | None = None
    strategy: str | None = None
    blocks: _Whole | None = None
    length: _Whole | None = None
    top_k: _Whole | None = None
    min_p: _Number | None = None
    repetition_penalty: _Number | None = None
    forbid: list[str] | None = None
    guidance: _Number | None = None
    label: str | None = None
    end_of_text: bool | None = None
    timeout: _Seconds | None = None
    policy: Literal["adaptive", "pinned"] | None = None
    canvases: bool | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stops."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def options(self) -> dict[str, Any]:
        """Those that `requests.Options` has and that are given."""
        names = requests.Options.__dataclass_fields__.keys() & type(self).model_fields.keys()
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.forbid is not None:
            given["forbid"] = tuple(self.forbid)
        return {name: value for name, value in given.items() if value is not None}


class Completion(Options):
    """A request for texts.

    Attributes:
      prompt: a text, or several.
      suffix: text behind the gap that `max_tokens` makes.
      max_tokens: of what is written.
      echo: whether the prompt is part of the answer.
      logprobs: 0 for the log-probability of each token that was written.
      best_of: as `n`.
    """

    prompt: str | Annotated[list[str], pydantic.Field(min_length=1)] = ""
    suffix: str | None = None
    max_tokens: _Whole | None = None
    echo: bool | None = None
    logprobs: Literal[0] | None = None
    best_of: _Whole | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class Alternatives(_Strict):
    """A request for what else the model finds likely at a place of a text that it wrote.

    Attributes:
      model, prompt, suffix, max_tokens, label, length, user, timeout: as the text was asked for.
      written: the ids of all tokens that were wanted, from the last event "canvas".
      position: which of them, from 0.
      top: how many alternatives.
    """

    model: str
    prompt: str = ""
    suffix: str | None = None
    max_tokens: _Whole | None = None
    label: str | None = None
    length: _Whole | None = None
    user: str | None = None
    timeout: _Seconds | None = None
    written: list[int]
    position: int
    top: Annotated[int, pydantic.Field(ge=1, le=20)] = 5


class TextPart(_Strict):
    """A part of a message.

    Attributes:
      type: "text".
      text: the text.
    """

    type: Literal["text"]
    text: str


class Message(_Strict):
    """A message of a conversation.

    Attributes:
      role: whose it is.
      content: a text, or parts of one.
    """

    role: str
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """The message with its content as one text."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class ResponseFormat(_Strict):
    """What an answer is.

    Attributes:
      type: "text".
    """

    type: Literal["text"]


class Chat(Options):
    """A request for answers to a conversation.

    Attributes:
      messages: the conversation.
      max_completion_tokens: the most tokens of an answer.
      max_tokens: its former name.
      logprobs: whether to tell the log-probability of each token.
      top_logprobs: 0.
      response_format: text.
    """

    messages: Annotated[list[Message], pydantic.Field(min_length=1)]
    max_completion_tokens: _Whole | None = None
    max_tokens: _Whole | None = None
    logprobs: bool | None = None
    top_logprobs: _Zero | None = None
    response_format: ResponseFormat | None = None
