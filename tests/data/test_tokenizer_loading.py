import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mdlm_jax import data

WORDS = ["the", "river", "runs", "past", "old", "stone", "mills"]


def byte_level(special, path):
    """A tokenizer of bytes, like RoBERTa's and GPT-2's, with these special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture
def vocabulary(tmp_path):
    """A folder as BERT's are."""
    letters = [*"abcdefghijklmnopqrstuvwxyzÉé.,-", "##s"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *WORDS, "The"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return tmp_path


def test_roles_are_found_by_their_customary_names(tmp_path):
    path = byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], tmp_path / "roberta.json")
    tokenizer = data.load_tokenizer(path)
    assert data.special_ids(tokenizer) == (257, 259, 256, 258, 260)
    assert data.mask_token(tokenizer) == "<mask>"
    (ids,) = data.encode_documents(tokenizer, ["a <mask> and </s>"])
    assert ids[-1] == 258 and not set(ids[:-1]) & set(data.special_ids(tokenizer))
    assert data.decode(tokenizer, [256, *ids, 257, 257]) == "a <mask> and </s>"
    assert tokenizer.encode("<mask>").ids == [260]


def test_separator_pads_and_roles_may_be_missing(tmp_path):
    path = byte_level(["<|endoftext|>", "[MASK]"], tmp_path / "gpt.json")
    tokenizer = data.load_tokenizer(path)
    assert data.special_ids(tokenizer) == (256, None, None, 256, 257)
    (ids,) = data.encode_documents(tokenizer, ["one two"])
    assert data.decode(tokenizer, [*ids, *ids, 256]) == "one two\none two"


@pytest.mark.parametrize(
    ("special", "message"),
    [
        (
            ["</s>"],
            r"gpt\.json: the tokenizer has no mask, none of \[MASK\] <mask> .* one can be add",
        ),
        (["<mask>"], r"gpt\.json: the tokenizer has no separator, none of \[SEP\] </s> "),
    ],
)
def test_missing_roles_tell_what_was_looked_for(tmp_path, special, message):
    path = byte_level(special, tmp_path / "gpt.json")
    with pytest.raises(ValueError, match=message):
        data.load_tokenizer(path)


def test_added_mask_repairs_a_tokenizer(tmp_path):
    path = byte_level(["</s>"], tmp_path / "gpt.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.add_special_tokens(["[MASK]"])
    tokenizer.save(path)
    assert data.special_ids(data.load_tokenizer(path)).mask == 257


def test_truncation_and_padding_of_a_file_are_switched_off(tmp_path):
    path = byte_level(["</s>", "<mask>"], tmp_path / "sentences.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(path)
    loaded = data.load_tokenizer(path)
    assert [len(loaded.encode(text).ids) for text in ("ab", "abcdef")] == [2, 6]


def test_vocabulary_counts_holes_below_the_highest_id(tmp_path):
    path = tmp_path / "holes.json"
    contents = json.loads(Tokenizer.from_file(byte_level(["</s>", "<mask>"], path)).to_str())
    contents["model"]["vocab"]["zz"] = 300
    path.write_text(json.dumps(contents))
    assert data.vocabulary_size(data.load_tokenizer(path)) == 301


def test_folder_of_bert_is_read(vocabulary):
    tokenizer = data.load_tokenizer(vocabulary)
    assert data.special_ids(tokenizer) == (0, 1, 2, 3, 4)
    assert tokenizer.encode("The old mills.").tokens == ["the", "old", "mills", "."]
    assert tokenizer.encode("river [MASK]").ids == [tokenizer.token_to_id("river"), 4]
    assert tokenizer.encode("É").tokens == ["e"]
    assert data.decode(tokenizer, tokenizer.encode("the old-stone river.").ids) == (
        "the old-stone river."
    )


def test_folder_tells_whether_case_is_folded(vocabulary):
    (vocabulary / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokenizer = data.load_tokenizer(vocabulary)
    assert tokenizer.encode("The É é").tokens == ["The", "É", "é"]
    (vocabulary / "tokenizer_config.json").write_text('{"strip_accents": false}')
    assert data.load_tokenizer(vocabulary).encode("The É").tokens == ["the", "é"]


def test_folder_prefers_its_tokenizer_json(vocabulary):
    byte_level(["</s>", "<mask>"], vocabulary / "tokenizer.json")
    assert data.mask_token(data.load_tokenizer(vocabulary)) == "<mask>"


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("none.json", None, FileNotFoundError, r"^no tokenizer at .*none\.json: accepted are word"),
        ("bad.json", "{", ValueError, r"bad\.json is no tokenizer\.json: "),
        (
            "vocab.txt",
            "[UNK]\n[SEP]\n",
            ValueError,
            r"vocab\.txt has no \[MASK\]: it is not BERT's",
        ),
        ("", None, FileNotFoundError, r"^no tokenizer in .*: it has no tokenizer\.json and no voc"),
    ],
)
def test_what_is_no_tokenizer_is_named(tmp_path, name, content, error, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    path = tmp_path if name == "vocab.txt" else path
    with pytest.raises(error, match=message) as told:
        data.load_tokenizer(path)
    assert "\n" not in str(told.value)


def test_hub_that_does_not_answer_is_told_in_one_line(monkeypatch, tmp_path, capfd):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"^tokenizer 'a/b' is no path here, and .* hub does not give it \(.*accepted",
    ) as told:
        data.load_tokenizer("a/b")
    assert "\n" not in str(told.value)
    assert capfd.readouterr().err == ""
