import dataclasses
import json

import exported
import jax
import pytest

import mdlm_jax
from mdlm_jax.serving import digests
from mdlm_jax.writing.requests import Options


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return mdlm_jax.load(exported.write(tmp_path_factory.mktemp("run") / "run"))


def of(model, dtype=None, **options):
    return digests.of(model, Options(**options), dtype)


def test_steps_and_strategy_are_written_out(model):
    version = of(model)
    assert (version.defaults.steps, version.defaults.strategy) == (64, "exact_count")
    assert version == of(model, steps=64, strategy=" exact_count ")
    assert version.dtype == "float32"


def test_each_part_decides_the_digest(model):
    made = [
        of(model),
        of(model, "bfloat16"),
        of(model, steps=1),
        of(model, strategy="threshold(0.9)"),
        of(model, temperature=0.5),
        of(model, forbid=["[UNK]"]),
    ]
    assert len({version.digest for version in made}) == len(made)
    assert len({version.weights for version in made}) == 1
    assert len({version.model for version in made}) == 1


def _with(model, **changes):
    return dataclasses.replace(model, model=model.model._replace(**changes))


def test_the_parameters_decide_the_digest(model):
    _, leaf = jax.tree.leaves_with_path(model.params)[0]
    changed = leaf.at[(0,) * leaf.ndim].add(1e-6)
    params = jax.tree.map(lambda x: changed if x is leaf else x, model.params)
    other = of(_with(model, params=params))
    assert other.weights != of(model).weights and other.digest != of(model).digest


def test_a_tokenizer_a_longer_row_and_a_template_decide_the_digest(model):
    tokenizer = type(model.tokenizer).from_str(model.tokenizer.to_str())
    tokenizer.add_tokens(["another"])
    others = [
        of(_with(model, tokenizer=tokenizer)),
        of(_with(model, length=12)),
        of(dataclasses.replace(model, card={**model.card, "chat_template": "{{ messages }}"})),
    ]
    assert len({version.digest for version in others} | {of(model).digest}) == 4
    assert {version.weights for version in others} == {of(model).weights}


def test_how_a_model_is_compiled_does_not_decide_the_digest(model):
    encoder = dataclasses.replace(model.encoder, scan=False, remat="full", dropout=0.3)
    assert of(_with(model, encoder=encoder)) == of(model)


def test_rows_that_pad_the_vocabulary_do_not_count(model):
    encoder = dataclasses.replace(model.encoder, vocab_multiple=64)
    assert encoder.padded_vocab > encoder.vocab_size

    def padded(path, leaf):
        if leaf.shape[:1] != (model.encoder.vocab_size,):
            return leaf
        extra = encoder.padded_vocab - len(leaf)
        return jax.numpy.pad(leaf, [(0, extra)] + [(0, 0)] * (leaf.ndim - 1), constant_values=3.0)

    params = jax.tree_util.tree_map_with_path(padded, model.params)
    assert digests.weights_digest(params, encoder) == of(model).weights


def test_a_version_is_read_as_it_was_written(model):
    version = of(model, "bfloat16", steps=4, forbid=["[UNK]", "[SEP]"], top_k=3)
    read = digests.from_json(json.loads(json.dumps(version.as_json())))
    assert read == version and read.digest == version.digest


def test_the_digest_holds_only_options_that_are_set(model):
    """So that a new option of a later version changes no digest."""
    assert of(model, steps=4).as_json()["defaults"] == {"steps": 4, "strategy": "exact_count"}


@pytest.mark.parametrize(
    "fields", [{}, {"weights": "a", "model": "b", "dtype": "c", "defaults": {"unheard": 1}}]
)
def test_what_is_no_version_is_refused(fields):
    with pytest.raises(ValueError, match=r"no version that mdlm_jax \S+ reads"):
        digests.from_json(fields)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"strategy": "unheard"}, "strategy 'unheard' must be one of"),
        ({"temperature": -1.0}, "temperature"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"forbid": ["[NONE]"]}, "forbid"),
    ],
)
def test_what_no_request_could_use_is_refused(options, told, model):
    with pytest.raises(ValueError, match=told):
        of(model, **options)


def test_another_dtype_is_refused(model):
    with pytest.raises(ValueError, match="dtype='float16': must be one of"):
        of(model, "float16")


def test_the_model_of_a_version_computes_in_its_dtype(model):
    changed = of(model, "bfloat16").of_model(model)
    assert changed.encoder.dtype == "bfloat16" and changed.params is model.params


def test_what_decides_a_bit_decides_the_fingerprint(model):
    version, device = of(model), jax.devices()[0]
    given = {"slots": 4, "length": 16, "device": device}
    unscanned = dataclasses.replace(model.encoder, scan=False)
    made = {
        digests.fingerprint(version, model.encoder, **given),
        digests.fingerprint(of(model, steps=1), model.encoder, **given),
        digests.fingerprint(version, unscanned, **given),
        digests.fingerprint(version, model.encoder, **{**given, "slots": 8}),
        digests.fingerprint(version, model.encoder, **{**given, "length": 32}),
    }
    assert len(made) == 5
    with jax.default_matmul_precision("highest"):
        made.add(digests.fingerprint(version, model.encoder, **given))
    assert len(made) == 6
    assert digests.fingerprint(version, model.encoder, **given) in made
    assert all(len(each) == 15 and each.startswith("fp_") for each in made)
