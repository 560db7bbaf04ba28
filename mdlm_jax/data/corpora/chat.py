"""Chat templates: from messages to the prompt that a model reads, and the response."""

import dataclasses
import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mdlm_jax.data import json_text, reading

Messages = Sequence[Mapping[str, Any]]

# Each message under its role; the answer comes last, and nothing follows it.
PLAIN = (
    "{% for message in messages %}"
    "{{ message.role }}:{{ '\n' }}{{ message.content }}{{ '' if loop.last else '\n' }}"
    "{% endfor %}"
    "{{ '\nassistant:\n' if add_generation_prompt else '' }}"
)


_SPECIAL = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How messages are written out, as Hugging Face's tokenizers do.

    A Jinja template of the variables `messages` and `add_generation_prompt`, rendered in a sandbox:
    it reaches nothing but what it is given, `raise_exception(text)` and `strftime_now(format)`, by
    the clock of whoever renders it. What stands in `{% generation %}` is written as it is.
    `bos_token`, `eos_token` and the other special tokens are '', as rows have separators of their
    own and a token that is spelt out is plain text; `tools` and `documents` are none.

    Attributes:
      text: the template.
      name: what messages call it.

    Raises:
      ValueError: it is no template; its line is named.
    """

    text: str = PLAIN
    name: str = "the built-in chat template"

    def __post_init__(self):
        try:
            _compiled(self.text)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"{self.name}, line {error.lineno}: {error.message}") from None

    def prompt(self, messages: Messages, place: str) -> str:
        """The text up to where the assistant's answer to the messages begins.

        Raises:
          ValueError: the template refuses them; the message begins with `place`.
        """
        now = datetime.datetime.now()
        return self._render(messages, place, now, add_generation_prompt=True)

    def pair(self, messages: Messages, place: str) -> tuple[str, str]:
        """The prompt, of all messages but the last, and the response: what the last adds to it.

        Raises:
          ValueError: the template refuses them, or does not write the whole as the prompt and what
            follows it; the message begins with `place`.
        """
        now = datetime.datetime.now()  # the same for both, however fine the template tells it
        prompt = self._render(messages[:-1], place, now, add_generation_prompt=True)
        whole = self._render(messages, place, now, add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise ValueError(
                f"{place}: {self.name} must write the whole as the prompt and what follows it, but "
                f"the prompt ends {prompt[-30:]!r} and the whole begins otherwise"
            )
        return prompt, whole[len(prompt) :]

    def _render(
        self,
        messages: Messages,
        place: str,
        now: datetime.datetime,
        *,
        add_generation_prompt: bool,
    ) -> str:
        try:
            text = _compiled(self.text).render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                strftime_now=now.strftime,
                tools=None,
                documents=None,
                **dict.fromkeys(_SPECIAL, ""),
            )
        except Exception as error:  # A template is a program: whatever it raises is its answer.
            message = " ".join(str(error).split())
            raise ValueError(f"{place}: {self.name}: {type(error).__name__}: {message}") from None
        return json_text.check_characters(text, f"{place}: {self.name}")


def load_template(path: str) -> ChatTemplate:
    """The template of a file, of '' the built-in one.

    Args:
      path: of a Jinja file, or of a tokenizer_config.json that holds the text "chat_template".

    Raises:
      ValueError: there is no such file, it is not text, or no template.
    """
    if not path:
        return ChatTemplate()
    if not reading.path(path).is_file():
        raise ValueError(f"chat_template must be the path of a Jinja file, there is none at {path}")
    try:
        text = _of_config(path) if path.lower().endswith(".json") else reading.text(path)
    except ValueError as error:
        raise ValueError(f"chat_template {error}") from None
    return ChatTemplate(text, f"chat_template {path}")


def _of_config(path: str) -> str:
    text = json_text.load(path).get("chat_template")
    if not isinstance(text, str):
        raise ValueError(f'{path} has no text "chat_template": it is no tokenizer_config.json')
    return text


def check_messages(value: Any, place: str) -> Messages:
    """The messages, if that is what they are: objects with the texts "role" and "content".

    Raises:
      ValueError: they are not, or there are none; the message begins with `place`.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(
            f'{place} must be a list of messages {{"role": "user", "content": "a text"}}, '
            f"got {json_text.shown(value)}"
        )
    for number, message in enumerate(value, 1):
        fields = message if isinstance(message, dict) else {}
        if not all(isinstance(fields.get(name), str) for name in ("role", "content")):
            raise ValueError(
                f'{place}: message {number} must have the texts "role" and "content", '
                f"got {json_text.shown(message)}"
            )
        for name in ("role", "content"):
            json_text.check_characters(fields[name], f"{place}: message {number}")
    return value


def check_answered(messages: Messages, place: str) -> Messages:
    """Messages that end with the assistant's answer to those before it.

    Raises:
      ValueError: they do not; the message begins with `place`.
    """
    roles = [message["role"] for message in messages]
    if roles[-1] != "assistant" or len(roles) < 2:
        raise ValueError(
            f"{place} must end with an assistant's message that answers others, got the roles "
            f"{', '.join(roles[-5:])}"
        )
    return messages


@functools.lru_cache(maxsize=8)
def _compiled(text: str) -> jinja2.Template:
    # White space around blocks, loop controls and JSON as the templates of the hub expect them.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _Generation],
    )
    environment.globals["raise_exception"] = _raise
    environment.filters["tojson"] = _to_json
    return environment.from_string(text)


def _raise(text: str) -> None:
    raise jinja2.TemplateError(text)


def _to_json(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **settings)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, by which templates mark what the model writes.

    The mark says nothing here: the response is what the last message adds to the prompt.
    """

    tags: ClassVar = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)
