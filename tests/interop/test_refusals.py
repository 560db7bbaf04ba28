"""What is not read or written: one line that names it, and nothing loaded."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import tiny
from safetensors import numpy as safetensors
from tokenizers import Tokenizer

from mdlm_jax import data, interop
from mdlm_jax.interop import Pretrained

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "bert", tmp_path / "checkpoint"))


def change(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def change_weights(folder, mend):
    path = folder / "model.safetensors"
    arrays = safetensors.load_file(path)
    mend(arrays)
    safetensors.save_file(arrays, path)


def refusal(folder, kind=ValueError):
    with pytest.raises(kind) as caught:
        interop.load_pretrained(folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "key, value, accepted",
    [
        ("model_type", "deberta-v2", "['bert', 'roberta', 'distilbert', 'modernbert']"),
        ("hidden_act", "relu", "'gelu_new'"),
        ("position_embedding_type", "relative_key", "'absolute'"),
        ("is_decoder", True, "False"),
        ("type_vocab_size", 3, "1 or 2"),
        ("pruned_heads", {"0": [1]}, "{}"),
        ("quantization_config", {"bits": 4}, "None"),
        ("hidden_size", "sixteen", "a whole number"),
        ("num_attention_heads", 3, "a divisor of width=16"),
        ("hidden_dropout_prob", 1.5, "in [0, 1)"),
        ("layer_norm_eps", 0, "positive"),
    ],
)
def test_a_config_that_the_encoder_cannot_compute(folder, key, value, accepted):
    change(folder, **{key: value})
    line = refusal(folder)
    assert "config.json" in line and key in line and accepted in line


@pytest.mark.parametrize(
    "key, value, accepted",
    [
        ("attention_bias", True, "False, as norm_bias is"),
        ("classifier_activation", "silu", "as hidden_activation, 'gelu'"),
        ("layer_types", ["sliding_attention", "full_attention"] * 2, "4 of them, 'full_attention'"),
        ("rope_parameters", {"full_attention": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ("local_attention", 1, "at least 2"),
        ("rope_parameters", [1e4], "a table of tables"),
    ],
)
def test_a_modernbert_that_the_encoder_cannot_compute(tmp_path, key, value, accepted):
    folder = Path(shutil.copytree(GOLDEN / "modernbert", tmp_path / "checkpoint"))
    change(folder, **{key: value})
    assert accepted in refusal(folder)


def test_weights_are_all_named_that_are_missing_or_misshapen(folder, monkeypatch):
    def spoil(arrays):
        del arrays["bert.encoder.layer.1.output.dense.bias"]
        del arrays["cls.predictions.transform.dense.weight"]
        norm = "bert.embeddings.LayerNorm.weight"
        arrays[norm] = arrays[norm][:-1]
        arrays["bert.encoder.layer.0.attention.self.key.weight"] = np.zeros((16, 16), np.int8)

    change_weights(folder, spoil)
    line = refusal(folder)
    assert "missing: " in line
    assert "bert.encoder.layer.1.output.dense.bias" in line
    assert "cls.predictions.transform.dense.weight" in line
    assert "bert.embeddings.LayerNorm.weight is float32 [15], must be float [16]" in line
    assert "self.key.weight is int8 [16, 16], must be float [16, 16]" in line
    assert line.count("[16") == 3  # nothing else is named


def test_an_output_layer_of_its_own(folder):
    change_weights(
        folder,
        lambda arrays: arrays.update({"cls.predictions.decoder.weight": np.ones((19, 16), "f4")}),
    )
    assert "cls.predictions.decoder.weight differs from bert.embeddings" in refusal(folder)


def test_an_output_layer_that_is_untied_and_missing(folder):
    change(folder, tie_word_embeddings=False)
    assert "missing: cls.predictions.decoder.weight" in refusal(folder)


def test_files_that_are_not_there(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    assert "model.safetensors, pytorch_model.bin" in refusal(folder, FileNotFoundError)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "missing: model-00001-of-00002" in refusal(folder, FileNotFoundError)
    outside = {"weight_map": {"a": "../../etc/passwd"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(outside))
    assert "of its own folder" in refusal(folder)
    assert "has no config.json" in refusal(tmp_path, FileNotFoundError)
    assert "no folder at" in refusal(tmp_path / "nowhere", FileNotFoundError)
    assert "is a file" in refusal(folder / "config.json")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damaged_files(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:50])
    assert name in refusal(folder)


@pytest.mark.slow
def test_a_pickle_runs_nothing(folder, tmp_path):
    pytest.importorskip("torch")

    class Harm:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Harm()}, protocol=2))
    assert "pytorch_model.bin is no file of weights alone" in refusal(folder)
    assert not (tmp_path / "harm").exists()


def test_a_tokenizer_that_does_not_fit(folder):
    with (folder / "vocab.txt").open("a") as file:
        file.write("more\n")
    assert "the tokenizer has 20 tokens, the model 19" in refusal(folder)


def test_a_mask_that_is_told_must_be_the_tokenizers(folder):
    with pytest.raises(ValueError, match=r"the mask was given as 3, but it is 7 \(\[MASK\]\)"):
        interop.load_pretrained(folder, mask_id=3)
    with pytest.raises(ValueError, match=r"mask_id=19: must be in \[0, 19\)"):
        interop.load_pretrained(folder, mask_id=19)


@pytest.mark.parametrize("spare", [0, 2])
def test_a_tokenizer_without_a_mask_gets_one(folder, spare, capsys):
    tokenizer = json.loads(data.load_tokenizer(folder).to_str())
    words = [*tokenizer["model"]["vocab"]]
    words.remove("[MASK]")
    tokenizer["model"]["vocab"] = {word: i for i, word in enumerate(words)}
    tokenizer["added_tokens"] = [
        {**token, "id": words.index(token["content"])}
        for token in tokenizer["added_tokens"]
        if token["content"] != "[MASK]"
    ]
    (folder / "vocab.txt").unlink()
    Tokenizer.from_str(json.dumps(tokenizer)).save(str(folder / "tokenizer.json"))
    rows = len(words) + spare

    def cut(arrays):
        for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
            arrays[name] = np.resize(arrays[name], (rows, *arrays[name].shape[1:]))

    change_weights(folder, cut)
    change(folder, vocab_size=rows)
    params, config, tokenizer = interop.load_pretrained(folder)
    assert config.mask_id == len(words) == data.special_ids(tokenizer).mask
    assert config.vocab_size == max(rows, len(words) + 1)
    assert "[MASK] was added to it, id 18" in capsys.readouterr().err
    table, bias = params["encoder"]["embeddings"]["tokens"], params["head"]["bias"]
    assert len(table) == len(bias) == config.vocab_size
    if not spare:
        np.testing.assert_allclose(table[-1], table[:-1].mean(0), atol=1e-6)
    interop.save_pretrained(folder / "again", Pretrained(params, config, tokenizer))
    assert interop.load_pretrained(folder / "again").config == config


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"qk_norm": True, "attention": "causal"}, "attention='causal' must be 'full', qk_norm"),
        ({"norm_position": "pre"}, "ModernBertForMaskedLM: embedding_norm=False must be True, pos"),
        ({"time_conditioning": True}, "BertForMaskedLM: time_conditioning=True must be False"),
        ({"token_types": 0}, "DistilBertForMaskedLM: norm_eps=1e-06 must be 1e-12"),
    ],
)
def test_a_model_that_no_family_computes_is_not_written(tmp_path, changes, told):
    config = dataclasses.replace(tiny.BASE, **changes)
    with pytest.raises(ValueError) as caught:
        interop.save_pretrained(tmp_path / "out", Pretrained(tiny.params_of(config), config, None))
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_only_an_empty_folder_is_written_to(tmp_path):
    pretrained = Pretrained(tiny.params_of(tiny.BASE), tiny.BASE, None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not an empty folder"):
        interop.save_pretrained(tmp_path, pretrained)
    other = dataclasses.replace(tiny.BASE, layers=1)
    with pytest.raises(ValueError, match="not those of the config"):
        interop.save_pretrained(tmp_path / "new", pretrained._replace(config=other))


def test_the_padding_of_the_vocabulary_is_left_out(tmp_path):
    config = dataclasses.replace(tiny.BASE, vocab_multiple=8)
    params = tiny.params_of(config)
    interop.save_pretrained(tmp_path, Pretrained(params, config, None))
    again = interop.load_pretrained(tmp_path)
    assert again.config == dataclasses.replace(config, vocab_multiple=1)
    np.testing.assert_array_equal(again.params["head"]["bias"], params["head"]["bias"][:13])
    padded, plain = (jax.tree.map(np.shape, x["encoder"]["blocks"]) for x in (params, again.params))
    assert padded == plain
