import datetime
import json

import pytest

from mdlm_jax.data.corpora.chat import ChatTemplate, check_answered, check_messages, load_template

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How <deep> is it?"},
    {"role": "assistant", "content": "Seven\nfathoms."},
]


def template(text):
    return ChatTemplate(text, "chat_template t.jinja")


def test_built_in_template_ends_the_prompt_where_the_answer_begins():
    prompt, response = ChatTemplate().pair(TALK, "here")
    assert prompt == "system:\nBe brief.\nuser:\nHow <deep> is it?\nassistant:\n"
    assert response == "Seven\nfathoms."
    assert ChatTemplate().prompt(TALK[:-1], "here") == prompt


def test_templates_are_rendered_as_hugging_face_does(tmp_path):
    (tmp_path / "chatml.jinja").write_text(CHATML)
    prompt, response = load_template(str(tmp_path / "chatml.jinja")).pair(TALK, "here")
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHow <deep> is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert response == "Seven\nfathoms.<|im_end|>\n"
    assert load_template("") == ChatTemplate()


HUB = {
    "special tokens": (
        "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content }}"
        "{{ eos_token + '\\n' if m.role == 'assistant' else '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "system: Be brief.\nuser: How <deep> is it?\nassistant: ",
        "Seven\nfathoms.\n",
    ),
    "generation": (
        "{% for m in messages %}\n{% if m.role == 'assistant' %}\n  {% generation %}\n"
        "{% set own = m.content %}{{ own }}{% endgeneration %}{{ own }}{% else %}\n"
        "{{ m.content }}|{% endif %}{% endfor %}",
        "Be brief.|How <deep> is it?|",
        "Seven\nfathoms.",
    ),
    "tools": (
        "{% if tools is not none or documents is not none %}{{ raise_exception('x') }}{% endif %}"
        "{% for m in messages %}{{ [m.role] | tojson(indent=0) }}{% endfor %}",
        '[\n"system"\n][\n"user"\n]',
        '[\n"assistant"\n]',
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_templates_of_the_hub_work_as_they_are(name):
    text, prompt, response = HUB[name]
    assert template(text).pair(TALK, "here") == (prompt, response)
    assert template(text).prompt(TALK[:-1], "here") == prompt


def test_a_template_tells_the_time_and_the_same_to_prompt_and_response():
    clock = template("{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}|{{ messages | length }}")
    before = datetime.datetime.now()
    told = [clock.prompt(TALK, "here").partition("|")[0] for _ in range(2)]
    assert before <= datetime.datetime.fromisoformat(told[0])
    assert (
        told[0] <= told[1] and datetime.datetime.fromisoformat(told[1]) <= datetime.datetime.now()
    )
    pair = template("{{ strftime_now('%f') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    for _ in range(20):
        assert pair.pair(TALK, "here")[1] == TALK[-1]["content"]


def test_a_template_may_stand_in_a_tokenizers_config(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": CHATML, "bos_token": "<s>"}))
    assert load_template(str(path)).text == CHATML
    path.write_text(json.dumps({"chat_template": [CHATML]}))
    with pytest.raises(
        ValueError, match=r'^chat_template .*config\.json has no text "chat_template"'
    ):
        load_template(str(path))


@pytest.mark.slow
def test_templates_are_rendered_as_transformers_does():
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    loops = "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m | tojson }}\n"
    hub = [text for text, *_ in HUB.values() if "_token" not in text]  # theirs there is undefined
    for text in (CHATML, *hub, loops + "{% endfor %}\n{{ 'x' if tools else bos_token }}\n"):
        rendered, _ = render_jinja_template([TALK], chat_template=text, add_generation_prompt=True)
        assert [template(text).prompt(TALK, "here")] == rendered


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # The answer's role comes behind it, so that the prompt is not how the whole begins.
        (
            "{% for m in messages %}{{ m.content }} ({{ m.role }}){% endfor %}"
            "{{ 'answer:' if add_generation_prompt else '' }}",
            "^line 3: chat_template t.jinja must write the whole as the prompt and what follows it",
        ),
        ("{{ raise_exception('no system here') }}", "line 3: .*: TemplateError: no system here$"),
        ("{{ messages[0].name.first }}", "line 3: .*: UndefinedError: .*no attribute 'name'"),
        ("{{ messages[0].content + 1 }}", "line 3: .*: TypeError: can only concatenate str"),
        # What comes with the text of others cannot reach the program.
        ("{{ messages.append(1) }}", "line 3: .*: SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "line 3: .*: SecurityError"),
    ],
)
def test_what_a_template_refuses_is_told_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        template(text).pair(TALK, "line 3")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("t.jinja", b"{{ messages }}\n{% for %}", r"^chat_template .*t\.jinja, line 2: "),
        ("t.jinja", b"\xff", r"^chat_template .*t\.jinja, line 1 is not UTF-8: byte 0 \(0xff\)$"),
        ("other", b"", r"^chat_template must be the path of a Jinja file, there is none at .*t\.j"),
    ],
)
def test_a_file_that_is_no_template_is_named(tmp_path, name, contents, message):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message) as error:
        load_template(str(tmp_path / "t.jinja"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hello", '^x must be a list of messages {"role": .*}, got "hello"$'),
        ([], r"^x must be a list of messages .* got \[\]$"),
        (["hello"], '^x: message 1 must have the texts "role" and "content", got "hello"$'),
        ([*TALK, {"role": "user", "content": ["hello"]}], '^x: message 4 must .* {"role": "user"'),
        (TALK[:2], "^x must end with an assistant's message .*, got the roles system, user$"),
        (TALK[2:], "^x must end with an assistant's message .*, got the roles assistant$"),
    ],
)
def test_messages_that_are_none_are_told(value, message):
    with pytest.raises(ValueError, match=message):
        check_answered(check_messages(value, "x"), "x")


def test_messages_may_have_other_fields():
    talk = [{**message, "id": json.dumps(message)} for message in TALK]
    assert check_answered(check_messages(talk, "x"), "x") is talk
