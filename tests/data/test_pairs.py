"""From files of pairs to rows and batches."""

import dataclasses
import json

import numpy as np
import pytest

from mdlm_jax import data
from mdlm_jax.data import preparation

LENGTH = 32


@pytest.fixture
def write(tmp_path):
    def write(records, name="pairs.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)))
        return str(tmp_path / name)

    return write


def records(count=300):
    return [
        {"prompt": f"count to {i}", "text": " ".join(map(str, range(i % 7 + 1))), "kind": i % 3}
        for i in range(count)
    ]


def config(files, **changes):
    fields = {"prompt_field": "prompt", "rows": "padded", "length": LENGTH}
    tokenizer = {"tokenizer": "characters", "vocab_size": 60}
    return data.Config(**{"source": "text_files", "files": files, **fields, **tokenizer, **changes})


def texts(prepared, split):
    """The prompt and the response of each row, as strings, and what stands behind them."""
    rows, decode = prepared.splits[split], prepared.tokenizer.decode
    for tokens, prompt, size in zip(rows.tokens, rows.prompts, rows.sizes, strict=True):
        assert tokens[prompt - 1] == tokens[size - 1] == prepared.sep_id
        yield decode(tokens[: prompt - 1]), decode(tokens[prompt : size - 1]), tokens[size:]


def test_rows_are_prompt_separator_response_and_separators_to_the_end(write, tmp_path):
    prepared = data.prepare(config(write(records())), tmp_path)
    found = [pair for split in prepared.splits for pair in texts(prepared, split)]
    asked = {(each["prompt"], each["text"]) for each in records()}
    assert len(found) == len(asked) == 300
    assert {pair[:2] for pair in found} == asked
    assert all(np.all(behind == prepared.sep_id) for *_, behind in found)
    assert prepared.card["chat_template"] == "" and prepared.label_names == ()
    train = prepared.card["splits"]["train"]
    assert train["dropped_documents"] == train["cut_tokens"] == 0
    rows = prepared.splits["train"]
    assert train["tokens"] == rows.sizes.sum() and train["longest"] == rows.sizes.max()
    some = rows[3:5]
    np.testing.assert_array_equal(some.prompts, rows.prompts[3:5])


def test_labels_come_with_pairs(write, tmp_path):
    prepared = data.prepare(config(write(records()), label_field="kind"), tmp_path)
    assert prepared.label_names == ("0", "1", "2")
    rows = prepared.splits["train"]
    for label, (prompt, *_) in zip(rows.labels, texts(prepared, "train"), strict=True):
        assert label == int(prompt.split()[-1]) % 3


def test_pairs_without_room_are_dropped_and_told_and_responses_cut(write, tmp_path, capsys):
    long = [
        *({"prompt": "p" * 40, "text": f"{i}"} for i in range(100)),
        *({"prompt": "p" * (LENGTH - 2), "text": f"r{i}"} for i in range(100)),
    ]
    prepared = data.prepare(config(write(long)), tmp_path)
    for split, rows in prepared.splits.items():
        told = prepared.card["splits"][split]
        assert len(rows) == told["rows"] == told["documents"] - told["dropped_documents"] > 0
        assert set(rows.prompts) == {LENGTH - 1} and set(rows.sizes) == {LENGTH}
        assert set(rows.counts) == {1}
        kept = (np.asarray(rows.tokens)[:, -1] == prepared.tokenizer.token_to_id("r")).all()
        assert kept and told["cut_tokens"] >= 2 * len(rows)  # digits and the separator
    lines = capsys.readouterr().err.splitlines()
    dropped = prepared.card["splits"]["train"]["dropped_documents"]
    assert len(lines) == 3 and lines[0].startswith(f"train: {dropped} of ")
    assert all("pairs are left out" in line for line in lines)
    data.prepare(config(write(long)), tmp_path)  # found again, or made again
    with pytest.raises(ValueError, match=r"has \d+ pairs, and no prompt leaves room .* length 16$"):
        data.prepare(config(write(long), length=16), tmp_path)


def test_messages_are_written_by_the_template(write, tmp_path):
    talks = [
        {
            "messages": [
                {"role": "user", "content": f"count to {i}"},
                {"role": "assistant", "content": f"{i % 7} [MASK]"},
            ]
        }
        for i in range(200)
    ]
    (tmp_path / "t.jinja").write_text(
        "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}"
        "{{ '<a>' if add_generation_prompt else '' }}"
    )
    asked = config(
        write(talks), prompt_field="", messages_field="messages", vocab_size=90, length=48
    )
    with_file = dataclasses.replace(asked, chat_template=str(tmp_path / "t.jinja"))
    plain, written = (data.prepare(each, tmp_path / "cache") for each in (asked, with_file))
    assert ("user:\ncount to 3\nassistant:\n", "3 [mask]") in [p[:2] for p in texts(plain, "train")]
    assert ("<u>count to 3<a>", "3 [mask]") in [pair[:2] for pair in texts(written, "train")]
    assert not (written.splits["train"].tokens == written.mask_id).any()
    assert plain.card["chat_template"] == data.ChatTemplate().text
    assert written.card["chat_template"] == (tmp_path / "t.jinja").read_text()

    (tmp_path / "t.jinja").write_text(written.card["chat_template"].replace("<a>", ">"))
    with pytest.raises(ValueError, match=r"line 1: messages_field 'messages': .*t\.jinja must wri"):
        data.prepare(with_file, tmp_path / "cache")
    (tmp_path / "t.jinja").write_text(written.card["chat_template"].replace("[0]", "[:1]"))
    again = data.prepare(with_file, tmp_path / "cache")
    assert again.path != written.path and again.fingerprint == written.fingerprint


def test_equal_pairs_stay_together_and_responses_alone_decide_nothing(write, tmp_path):
    yes_no = [{"prompt": f"is {i} even", "text": "yes" if i % 2 else "no"} for i in range(200)]
    prepared = data.prepare(config(write(yes_no + yes_no)), tmp_path)
    found = {split: {pair[0] for pair in texts(prepared, split)} for split in prepared.splits}
    assert all(found.values()) and sum(map(len, found.values())) == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": "packed"}, "^rows must be 'padded' for pairs .* got 'packed'$"),
        ({"split_by": "position"}, "^split_by must be 'documents' for pairs .* got 'position'$"),
        ({"text_field": "prompt"}, "^prompt_field and text_field must name two fields, .*'prompt'"),
        ({"messages_field": "m"}, "^prompt_field does nothing for messages_field 'm', which holds"),
        (
            {"messages_field": "m", "prompt_field": "", "text_field": "body"},
            "^text_field does nothing for messages_field 'm'",
        ),
        ({"chat_template": "t"}, "^chat_template does nothing for data without messages_field"),
        (
            {"source": "lm1b", "files": "", "messages_field": "m"},
            "^messages_field does nothing for",
        ),
        (
            {"source": "wikipedia_summaries", "files": ""},
            "^prompt_field does nothing for source 'wikipedia_summaries'",
        ),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message) as error:
        config(**{"files": "a.jsonl", **change})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        ({}, {"text": "x"}, r"pairs\.jsonl, line 2 has no prompt_field 'prompt': its fields are "),
        ({}, {"prompt": 3, "text": "x"}, r"line 2: prompt_field 'prompt' must be a string, got 3$"),
        ({}, {"prompt": "x"}, r"line 2 has no text_field 'text': its fields are prompt$"),
        (
            {},
            {"prompt": "\ud800", "text": "x"},
            r"line 2: prompt_field 'prompt' holds '\\ud800', half of a surrogate pair$",
        ),
        ({"messages_field": "m"}, {"x": 1}, r"line 2 has no messages_field 'm': its fields are x$"),
        ({"messages_field": "m"}, {"m": "x"}, r"line 2: messages_field 'm' must be a list of mess"),
        ({"messages_field": "m"}, {"m": [1]}, r"line 2: messages_field 'm': message 1 must have "),
        (
            {"messages_field": "m"},
            {"m": [{"role": "user", "content": "x"}]},
            r"line 2: messages_field 'm' must end with an assistant's message .* roles user$",
        ),
    ],
)
def test_malformed_lines_are_named(write, tmp_path, change, line, message):
    good = {"m": [{"role": r, "content": "x"} for r in ("user", "assistant")], **records(1)[0]}
    if change:
        change = {**change, "prompt_field": ""}
    with pytest.raises(ValueError, match=message) as error:
        data.prepare(config(write([good, line]), **change), tmp_path)
    assert "\n" not in str(error.value)


def test_pairs_of_a_txt_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"^prompt_field 'prompt' needs \.jsonl, .*, and .*a\.txt"):
        data.prepare(config(str(tmp_path / "a.txt")), tmp_path)


def test_data_that_were_prepared_before_there_were_pairs_are_found_again():
    """The keys that the version before pairs gave to these configs."""
    corpus = data.Corpus("1", "", (), None)
    tiny = data.Config(vocab_size=120, length=16)
    wikipedia = data.SOURCES["wikipedia_summaries"]
    assert preparation._key(data.Config(), wikipedia, None) == "2b42aeb18e244a2a"
    keys = {
        preparation._key(each, corpus, None)
        for each in (
            tiny,
            dataclasses.replace(tiny, rows="padded"),
            config("a.jsonl"),
            config("a.jsonl", prompt_field="question"),
        )
    }
    assert len(keys) == 4


def test_padding_is_of_padded_documents_alone():
    assert config("a.jsonl").pairs and not config("a.jsonl").has_padding
    text = data.Config(rows="padded")
    assert text.has_padding and not text.pairs
    assert not data.Config().has_padding
