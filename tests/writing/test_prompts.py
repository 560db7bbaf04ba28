import json

import numpy as np
import pytest
from command_runs import TEXT
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mdlm_jax import data
from mdlm_jax.writing import canvases, prompts
from mdlm_jax.writing.prompts import Asking, Fields, Prompt

LENGTH = 12


@pytest.fixture(scope="module")
def tokenizer():
    return data.train_tokenizer([TEXT] * 3, kind="wordpiece", vocab_size=400, lowercase=True)


@pytest.fixture(scope="module")
def special(tokenizer):
    return data.special_ids(tokenizer)


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_rows_of_one_batch_have_lengths_of_their_own(tokenizer, special):
    texts = ["the [MASK]", "", "[MASK] mill {mask:3} salt"]
    rows = canvases.canvas(texts, tokenizer, LENGTH)
    assert rows.tokens.shape == rows.fill.shape == rows.shown.shape == (3, LENGTH)
    the, mill, salt = (ids(tokenizer, word) for word in ("the", "mill", "salt"))
    lengths = [len(the) + 1, LENGTH, len(mill) + len(salt) + 4]
    assert rows.shown.sum(axis=1).tolist() == lengths
    assert rows.fill.sum(axis=1).tolist() == [1, LENGTH, 4]
    mask = special.mask
    expected = [mask, *mill, mask, mask, mask, *salt]
    assert rows.tokens[2].tolist() == expected + [mask] * (LENGTH - len(expected))
    # What follows a prompt is masked and neither wanted nor shown.
    assert np.all(rows.tokens[0, lengths[0] :] == mask) and not rows.fill[0, lengths[0] :].any()
    assert not np.any(rows.fill & ~rows.shown)


@pytest.mark.parametrize("kind", ["bpe", "characters"])
def test_a_prompt_keeps_its_white_space(kind):
    """A mask takes the one space before it and no more: its line and its indentation stay."""
    texts = ["def f(x):\n    return x\t\n"] * 3
    tokenizer = data.train_tokenizer(texts, kind=kind, vocab_size=300, lowercase=False)
    prompt = "  def f(x):\n    [MASK] x\n\n[MASK]\t[MASK] "
    rows = canvases.canvas([prompt], tokenizer, 40)
    tokens = rows.tokens[0, rows.shown[0]]
    assert rows.fill.sum() == 3
    told = prompt.replace(" [MASK]", "[MASK]") if kind == "bpe" else prompt
    assert data.decode(tokenizer, tokens) == told
    # What a text would be split into, where it has no gap.
    before, _ = prompt.split("[MASK] x")
    whole = ids(tokenizer, before + "return")
    mask = tokens.tolist().index(data.special_ids(tokenizer).mask)
    assert tokens[:mask].tolist() == whole[:mask]


def test_special_tokens_may_be_spelt_out(tokenizer, special):
    tokens = canvases.canvas(["[SEP] the [MASK]"], tokenizer, LENGTH).tokens
    assert tokens[0, 0] == special.sep


def test_gaps_are_written_alike_whatever_the_mask_is_called():
    vocabulary = {word: i for i, word in enumerate(["<unk>", "</s>", "<pad>", "a"])}
    roberta = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    roberta.pre_tokenizer = pre_tokenizers.Whitespace()
    roberta.add_special_tokens([AddedToken("<mask>")])
    rows = canvases.canvas(["a [MASK] a {mask:2}", "<mask>"], roberta, 6)
    assert rows.tokens.tolist() == [[3, 4, 3, 4, 4, 4], [4] * 6]
    assert rows.fill.sum(axis=1).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no gap", "'no gap' has nothing to fill: mark gaps by"),
        ("{mask:13}", "13 tokens, a row has 12"),
        ("{mask:99999999999999}", "has 99999999999999 tokens, a row has 12"),
        (f"{{mask:{'9' * 5_000}}}", "has too many tokens, a row has 12"),
        ("the {mask:0012}", "has 1[3-9] tokens, a row has 12"),
        ("the {mask:12}", "tokens, a row has 12"),
        ("a {mask:0}", r"\{mask:0\} is no gap"),
        ("a {mask:many}", r"\{mask:many\} is no gap"),
        ("漢字 the [MASK] 漢", "does not know: '漢' '字'$"),
    ],
)
def test_a_prompt_that_is_none_is_refused_in_one_line(tokenizer, text, message):
    with pytest.raises(ValueError, match=message) as error:
        canvases.canvas(["the [MASK]", text], tokenizer, LENGTH)
    assert "\n" not in str(error.value)


def test_a_file_has_a_prompt_a_line(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("the [MASK]\r\n\r\n {mask:2} of\u2028salt".encode())
    expected = [Prompt("the [MASK]"), Prompt(" {mask:2} of\u2028salt")]
    assert prompts.read(tmp_path / "prompts.txt") == expected


def test_a_run_of_pairs_must_be_asked(tmp_path):
    (tmp_path / "a.txt").write_text("two")
    asking = Asking(None, "[MASK]")
    with pytest.raises(ValueError, match=r"trained on pairs .*: ask it by --prompt, or by --prom"):
        prompts.asked([], None, asking)
    assert prompts.asked([], None, None) == [Prompt("")]
    assert prompts.asked(["one", ""], None, asking) == [Prompt("one"), Prompt("")]
    assert prompts.asked([], tmp_path / "a.txt", asking) == [Prompt("two")]


def test_a_jsonl_file_has_prompts_with_labels(tmp_path):
    lines = [
        {"prompt": "the [MASK]", "label": "trade", "id": 7},
        {"prompt": ""},
        {"prompt": "two\nlines\u2028[MASK]", "label": None},
    ]
    text = "\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (tmp_path / "prompts.jsonl").write_text(text, encoding="utf-8")
    assert prompts.read(tmp_path / "prompts.jsonl") == [
        Prompt("the [MASK]", "trade"), Prompt(""), Prompt("two\nlines\u2028[MASK]"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("a.txt", b" \n\n", "a.txt holds no prompt"),
        ("a.txt", b"a\xff", r"a.txt, line 1 is not UTF-8: byte 1 \(0xff\)$"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt"', "line 2 is not JSON"),
        ("a.json", b'{\n"prompt": "a"\n}', "line 1 is not JSON: .*; each line must be a whole obj"),
        ("a.jsonl", b'{"text": "a"}', 'line 1 has no text "prompt"'),
        ("a.jsonl", b'["a"]', r'line 1 must be an object with fields, got \["a"\]'),
        (
            "a.jsonl",
            b'{"prompt": 5}',
            'line 1 has no text "prompt" and no "messages" but "prompt" 5:',
        ),
        ("a.jsonl", b'{"prompt": "", "label": true}', 'line 1: "label" must be a string or an int'),
        ("a.txt", b'a [MASK]\n{"prompt": "a"}', "line 2 is JSON: .* must end in .jsonl"),
        ("a.jsonl", b'{"messages": "a"}', 'line 1: "messages" must be a list of messages .*"a"'),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', 'line 1: "messages": message 1 must have'),
        (
            "a.jsonl",
            b'{"prompt": "a", "messages": []}',
            'line 1: "prompt" and "messages" exclude each other',
        ),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path, name, contents, message):
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(ValueError, match=message) as error:
        prompts.read(tmp_path / name)
    assert "\n" not in str(error.value)


USER = {"role": "user", "content": "the mill"}
TALK = [{"role": "system", "content": "salt"}, USER]


def test_a_jsonl_file_has_conversations(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TALK, "label": "trade"}))
    assert prompts.read(tmp_path / "a.jsonl") == [Prompt("the mill", "trade", TALK)]


OWN = [
    # fields of the run's data, a line, what is asked
    (Fields("question"), {"question": "why", "answer": "so"}, Prompt("why")),
    (Fields("question"), {"prompt": "why"}, Prompt("why")),
    (Fields("question"), {"question": "why", "prompt": "not this", "messages": 3}, Prompt("why")),
    (Fields("prompt"), {"prompt": "why"}, Prompt("why")),
    (Fields("messages"), {"messages": "why"}, Prompt("why")),
    (Fields("", "talk"), {"talk": TALK, "prompt": "not this"}, Prompt("the mill", None, TALK)),
    (Fields("", "talk"), {"messages": TALK}, Prompt("the mill", None, TALK)),
    (Fields("", "talk"), {"prompt": "why"}, Prompt("why")),
    (Fields("", "prompt"), {"prompt": TALK}, Prompt("the mill", None, TALK)),
    (Fields(label="topic"), {"prompt": "a", "topic": 7, "label": "b"}, Prompt("a", "7")),
    (Fields(label="topic"), {"prompt": "a", "label": "b"}, Prompt("a", "b")),
    (Fields(label="topic"), {"prompt": "a", "topic": None}, Prompt("a")),
]


@pytest.mark.parametrize(("fields", "line", "expected"), OWN)
def test_a_line_may_ask_by_the_runs_own_names(tmp_path, fields, line, expected):
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    assert prompts.asked([], tmp_path / "a.jsonl", None, fields) == [expected]


@pytest.mark.parametrize(
    ("fields", "line", "message"),
    [
        (
            Fields("question"),
            '{"answer": "x"}',
            r'line 1 has no text "question" or "prompt" and no "messages" but neither: a line is '
            r'\{"question": "a \[MASK\] gap"\} or',
        ),
        (Fields("question"), '{"question": 5}', 'line 1 has no text .* but "question" 5: a line'),
        (
            Fields("", "talk"),
            '{"x": 1}',
            'no text "prompt" and no "talk" or "messages" but neither',
        ),
        (Fields("", "talk"), '{"talk": "x"}', 'line 1: "talk" must be a list of messages'),
        (Fields("q"), '{"prompt": "a", "messages": []}', '"prompt" and "messages" exclude each'),
        (Fields(label="topic"), '{"prompt": "", "topic": 1.5}', 'line 1: "topic" must be a string'),
        (Fields("q"), '{"q": "\\ud800"}', r"line 1: \"q\" holds '.ud800', half"),
    ],
)
def test_a_line_that_asks_nothing_by_the_runs_names_is_named(tmp_path, fields, line, message):
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(ValueError, match=message):
        prompts.read(tmp_path / "a.jsonl", fields)


def test_lines_of_json_in_a_text_are_noticed_by_the_runs_names_too(tmp_path):
    (tmp_path / "a.txt").write_text('{"question": "why"}')
    assert prompts.read(tmp_path / "a.txt") == [Prompt('{"question": "why"}')]
    with pytest.raises(ValueError, match=r"line 1 is JSON: a file of such lines must end in \.jso"):
        prompts.read(tmp_path / "a.txt", Fields("question"))


def test_the_names_are_those_of_the_runs_data():
    told = {"prompt_field": "question", "messages_field": "", "label_field": "topic"}
    assert prompts.fields({"config": told}, labels=True) == Fields("question", "", "topic")
    # A model without classes takes no label: that of its data is a field like any other.
    assert prompts.fields({"config": told}, labels=False) == Fields("question")
    assert prompts.fields({}, labels=True) == Fields()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Data of conversations: wool and salt are praised."""
    folder = tmp_path_factory.mktemp("pairs")
    talks = [
        [
            {"role": "user", "content": f"what of the {i} [SEP] bags of {what}"},
            {"role": "assistant", "content": f"old {what} " + "and market " * (i % 3)},
        ]
        for i in range(40)
        for what in ("salt", "wool")
    ]
    lines = "\n".join(json.dumps({"talk": talk}) for talk in talks)
    (folder / "talks.jsonl").write_text(lines)
    config = data.Config(
        source="text_files", files=str(folder / "talks.jsonl"), messages_field="talk",
        rows="padded", length=40, vocab_size=200,
    )  # fmt: skip
    return data.prepare(config, folder / "cache"), talks


def test_the_canvas_of_an_answer_is_the_row_of_training_with_its_response_masked(pairs):
    prepared, talks = pairs
    asking = prompts.asking(prepared.card, prepared.tokenizer)
    asked = [Prompt(talk[0]["content"]) for talk in talks]
    told = [Prompt("", None, talk[:1]) for talk in talks]
    rows, same = (canvases.lay_out(p, prepared.tokenizer, 40, asking) for p in (asked, told))
    laid_out = {tuple(tokens) for tokens in rows.tokens.tolist()}
    assert laid_out == {tuple(tokens) for tokens in same.tokens.tolist()}
    np.testing.assert_array_equal(rows.fill, rows.tokens == prepared.mask_id)
    np.testing.assert_array_equal(rows.shown, rows.fill)
    trained = set()
    for split in prepared.splits.values():
        behind = np.arange(40) >= split.prompts[:, None]
        masked = np.where(behind, prepared.mask_id, split.tokens)
        trained |= {tuple(tokens) for tokens in masked.tolist()}
    assert trained == laid_out and len(trained) == 80


def test_prompts_with_gaps_stay_what_they_were_beside_answers(tokenizer, special):
    asking = Asking(None, "[MASK]")
    texts = ["the [MASK]", "the mill", "{mask:2} salt", ""]
    asked = [Prompt(text) for text in texts]
    assert [asking.answers(prompt) for prompt in asked] == [False, True, False, True]
    rows = canvases.lay_out(asked, tokenizer, LENGTH, asking)
    gaps = canvases.canvas(texts[::2], tokenizer, LENGTH)
    assert rows.valid is None and gaps.valid is None
    for name in ("tokens", "fill", "shown", "maskable"):
        np.testing.assert_array_equal(getattr(rows, name)[::2], getattr(gaps, name))
    np.testing.assert_array_equal(rows.maskable[1::2], rows.fill[1::2])  # as training masks them

    mill = [*ids(tokenizer, "the mill"), special.sep]
    assert rows.tokens[1].tolist() == mill + [special.mask] * (LENGTH - len(mill))
    assert rows.shown[1].sum() == LENGTH - len(mill)
    assert rows.tokens[3].tolist() == [special.sep] + [special.mask] * (LENGTH - 1)
    plain = canvases.lay_out(asked[::2], tokenizer, LENGTH, None)
    for one, other in zip(plain, gaps, strict=True):
        np.testing.assert_array_equal(one, other)


def test_of_padded_rows_a_text_ends_with_its_separator(tokenizer, special):
    whole = canvases.canvas(["", "the [MASK]"], tokenizer, LENGTH)
    rows = canvases.as_whole_rows(whole, tokenizer)
    np.testing.assert_array_equal(rows.tokens[0], [special.mask] * LENGTH)
    size = whole.shown[1].sum()
    behind = [special.sep] + [special.pad] * (LENGTH - size - 1)
    assert rows.tokens[1].tolist() == whole.tokens[1, :size].tolist() + behind
    assert rows.valid.sum(axis=1).tolist() == [LENGTH, size + 1]
    np.testing.assert_array_equal(rows.fill, whole.fill)
    # As training masks them: padding is no part of what the time is the masked share of.
    np.testing.assert_array_equal(rows.maskable, rows.valid)
    # Of a run that keeps prompts, what is known is no part of it either.
    for canvas in (whole, rows):
        kept = canvases.as_kept(canvas, tokenizer)
        np.testing.assert_array_equal(kept.maskable, kept.tokens == special.mask)
        np.testing.assert_array_equal(kept.fill, canvas.fill)


@pytest.mark.parametrize(
    ("prompt", "asking", "message"),
    [
        (Prompt("the mill", None, TALK), None, "'the mill' has messages: they are for runs"),
        (
            Prompt("the mill", None, TALK),
            Asking(None, "[MASK]"),
            "'the mill' has messages: they are for runs",
        ),
        (
            Prompt("x", None, [USER, {"role": "assistant", "content": "x"}]),
            Asking(data.ChatTemplate(), "[MASK]"),
            "prompt 'x': the last message is the assistant's",
        ),
        (
            Prompt("the mill", None, TALK),
            Asking(data.ChatTemplate("{{ raise_exception('no salt') }}"), "[MASK]"),
            "^prompt 'the mill': the built-in chat template: TemplateError: no salt$",
        ),
        (Prompt("salt " * 11), Asking(None, "[MASK]"), "with its separator, which leaves no room"),
        (Prompt("no gap"), None, "'no gap' has nothing to fill"),
    ],
)
def test_what_cannot_be_answered_is_told(tokenizer, prompt, asking, message):
    with pytest.raises(ValueError, match=message) as error:
        canvases.lay_out([Prompt("{mask:2}"), prompt], tokenizer, LENGTH, asking)
    assert "\n" not in str(error.value)


def test_runs_are_asked_as_their_data_were_written(tokenizer):
    assert prompts.asking({"label_names": []}, tokenizer) is None
    without = {"config": {"prompt_field": "", "messages_field": ""}, "chat_template": ""}
    assert prompts.asking(without, tokenizer) is None
    texts = {"config": {"prompt_field": "question"}}
    assert prompts.asking(texts, tokenizer) == Asking(None, "[MASK]")
    talks = {"config": {"messages_field": "talk"}, "chat_template": "{{ messages }}"}
    assert prompts.asking(talks, tokenizer).template.text == "{{ messages }}"


def test_labels_are_found_by_name():
    asked = [Prompt("", "wool"), Prompt(""), Prompt("", "salt")]
    indices = prompts.label_indices(asked, ["salt", "wool"])
    assert indices.dtype == np.int32 and indices.tolist() == [1, -1, 0]
    with pytest.raises(ValueError, match="a label must be one of salt, not 'wool'"):
        prompts.label_indices(asked, ["salt"])


def test_a_token_is_found_by_its_spelling_or_its_text(tokenizer, special):
    assert prompts.token_id("[UNK]", tokenizer) == special.unk
    assert prompts.token_id("the", tokenizer) == tokenizer.token_to_id("the")
    assert prompts.token_id("THE", tokenizer) == tokenizer.token_to_id("the")
    assert prompts.token_id("##e", tokenizer) == tokenizer.token_to_id("##e")
    for text in ("漢", "", " "):
        with pytest.raises(ValueError, match="is no token of the model's tokenizer"):
            prompts.token_id(text, tokenizer)
    with pytest.raises(ValueError, match=r"'the mill' is not one token .* but [2-9]: the "):
        prompts.token_id("the mill", tokenizer)


def test_a_framed_row_is_a_text_between_its_marks(tokenizer, special):
    canvas = canvases.canvas(["the [MASK]", "[MASK] mill {mask:3} salt"], tokenizer, LENGTH - 2)
    rows = canvases.as_framed(canvas, tokenizer)
    for row, size in enumerate(canvas.shown.sum(axis=1)):
        text = canvas.tokens[row, :size].tolist()
        end = 1 + size
        assert rows.tokens[row, : end + 1].tolist() == [special.cls, *text, special.sep]
        assert (rows.tokens[row, end + 1 :] == special.pad).all()
        assert rows.valid[row].sum() == end + 1 and rows.maskable[row].sum() == size
        assert rows.tokens[row][rows.shown[row]].tolist() == text
    np.testing.assert_array_equal(rows.fill, rows.tokens == special.mask)
    assert rows.tokens.shape[1] in (8, LENGTH)  # no longer than the longest needs


def test_a_tokenizer_without_a_start_frames_by_its_separator_alone():
    words = ["[PAD]", "[UNK]", "[SEP]", "[MASK]", "a", "b"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:4])
    rows = canvases.as_framed(canvases.canvas(["a [MASK] b"], tokenizer, 7), tokenizer)
    assert rows.tokens[0, :4].tolist() == [4, 3, 5, 2] and canvases.frame_size(tokenizer) == 1
