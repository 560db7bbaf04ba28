"""Against transformers itself: what it saves is read, what is written it opens."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax import interop
from mdlm_jax.networks import bert

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
theirs = pytest.importorskip("interop.theirs")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()


def computed(pretrained, token_types=None):
    """Hidden states and logits of the inputs."""
    params, config, _ = pretrained
    tokens, valid = jnp.asarray(theirs.TOKENS), jnp.asarray(theirs.VALID)
    options = {"valid": valid, "token_types": token_types}
    hidden = bert.hidden_states(params, config, tokens, **options)
    return hidden, bert.logits(params, config, tokens, **options)


def assert_same(model, pretrained, **options):
    hidden, logits = theirs.outputs(model, **options)
    types = options.get("token_type_ids")
    ours = computed(pretrained, None if types is None else jnp.asarray(types))
    valid = theirs.VALID
    np.testing.assert_allclose(ours[0][valid], hidden[valid], atol=1e-4)
    if logits is not None:
        assert np.ptp(logits) > 2
        np.testing.assert_allclose(ours[1][valid], logits[valid], atol=1e-4)


MODELS = {
    "bert": lambda: theirs.bert(),
    "bert, GELU by tanh": lambda: theirs.bert(hidden_act="gelu_new"),
    "bert, SiLU, one type": lambda: theirs.bert(hidden_act="silu", type_vocab_size=1),
    "roberta": lambda: theirs.roberta(),
    "roberta, two types": lambda: theirs.roberta(type_vocab_size=2),
    "distilbert": lambda: theirs.distilbert(activation="gelu_new"),
    "modernbert": lambda: theirs.modernbert(),
    "modernbert, biases": lambda: theirs.modernbert(**theirs.BIASES, global_attn_every_n_layers=2),
    "modernbert, all local, no bias": lambda: theirs.modernbert(
        layer_types=["sliding_attention"] * 4, decoder_bias=False
    ),
    "modernbert, all global": lambda: theirs.modernbert(global_attn_every_n_layers=1),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_read_and_written(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "theirs")
    pretrained = interop.load_pretrained(tmp_path / "theirs")
    assert_same(model, pretrained)
    interop.save_pretrained(tmp_path / "ours", pretrained)
    opened, loading = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True
    )
    assert not any(loading.values())
    valid = theirs.VALID
    for mine, before in zip(theirs.outputs(opened.eval()), theirs.outputs(model), strict=True):
        np.testing.assert_array_equal(mine[valid], before[valid])


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_every_array_comes_back_to_the_bit(family, tmp_path):
    model = theirs.FAMILIES[family]()
    model.save_pretrained(tmp_path / "theirs")
    interop.save_pretrained(tmp_path / "ours", interop.load_pretrained(tmp_path / "theirs"))
    again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours").state_dict()
    assert again.keys() == model.state_dict().keys()
    for name, x in model.state_dict().items():
        assert torch.equal(x, again[name]), name


def test_token_types(tmp_path):
    model = theirs.bert()
    model.save_pretrained(tmp_path)
    assert_same(model, interop.load_pretrained(tmp_path), token_type_ids=theirs.TYPES)


def test_the_head_of_pretraining_is_left_out(tmp_path, capsys):
    model = theirs.bert(transformers.BertForPreTraining)
    model.save_pretrained(tmp_path)
    assert_same(model, interop.load_pretrained(tmp_path))
    (line,) = (x for x in capsys.readouterr().err.splitlines() if "left out" in x)
    names = ("bert.pooler.dense.bias", "bert.pooler.dense.weight", "cls.seq_relationship.weight")
    assert all(name in line for name in names)


@pytest.mark.parametrize(
    "family, kind",
    [
        ("bert", "BertModel"),
        ("roberta", "RobertaModel"),
        ("distilbert", "DistilBertModel"),
        ("modernbert", "ModernBertModel"),
    ],
)
def test_without_a_head_it_is_new_and_that_is_told(family, kind, tmp_path, capsys):
    model = theirs.FAMILIES[family](getattr(transformers, kind))
    model.save_pretrained(tmp_path)
    pretrained = interop.load_pretrained(tmp_path)
    assert "no masked-LM head there: the model's is new" in capsys.readouterr().err
    assert_same(model, pretrained)
    again = interop.load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.params, pretrained.params)
    assert not pretrained.params["head"]["bias"].any()


def test_shards_and_files_of_pytorch(tmp_path):
    model = theirs.bert()
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="5KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    # As files of before 2020 are: the output layer twice, the norms by their old names.
    old = {name: x.clone() for name, x in model.state_dict().items()}
    for name in [x for x in old if "LayerNorm" in x]:
        new = name.replace(".weight", ".gamma").replace(".bias", ".beta")
        old[new] = old.pop(name)
    old["bert.embeddings.position_ids"] = torch.arange(12)[None]
    model.config.save_pretrained(tmp_path / "torch")
    torch.save(old, tmp_path / "torch" / "pytorch_model.bin")
    one, *others = (interop.load_pretrained(tmp_path / x) for x in ("one", "shards", "torch"))
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, other.params, one.params)


def test_files_of_pytorch_without_pytorch(tmp_path, monkeypatch):
    theirs.bert().config.save_pretrained(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'mdlm_jax\[interop\]'"):
        interop.load_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_read_into_float32(dtype, tmp_path):
    model = theirs.bert().to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    pretrained = interop.load_pretrained(tmp_path)
    assert {x.dtype.name for x in jax.tree.leaves(pretrained.params)} == {"float32"}
    assert_same(model.float(), pretrained)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert"])
def test_the_tokenizer_opens_too(family, tmp_path):
    (tmp_path / "theirs").mkdir()
    theirs.FAMILIES[family]().save_pretrained(tmp_path / "theirs")
    theirs.write_vocabulary(tmp_path / "theirs")
    interop.save_pretrained(tmp_path / "ours", interop.load_pretrained(tmp_path / "theirs"))
    before = transformers.BertTokenizer.from_pretrained(tmp_path / "theirs")
    after = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    texts = ["The cats sat [MASK] the mat.", "a dog ran"]
    assert after(texts)["input_ids"] == before(texts)["input_ids"]
    assert after.mask_token_id == before.mask_token_id == theirs.MASK
    assert (after.pad_token_id, after.cls_token, after.sep_token) == (0, "[CLS]", "[SEP]")
    assert after.model_max_length == 12
    batch = after(texts, padding=True, return_tensors="pt")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "ours")
    assert model(**batch).logits.shape[:2] == batch["input_ids"].shape
