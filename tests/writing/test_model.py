"""A trained model in a Python program, of random weights: the same figures as the rooms below."""

import json
import re
from pathlib import Path

import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import TEXT, run
from etils import epath

import mdlm_jax
from mdlm_jax import data
from mdlm_jax.runs import workdir
from mdlm_jax.writing import answering, requests

GOLDEN = Path(__file__).parents[1] / "interop" / "golden"
WORDS = TEXT.split()
CLASSES = {"classes": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return exported.write(tmp_path_factory.mktemp("model") / "run", **CLASSES)


@pytest.fixture(scope="module")
def model(folder):
    return mdlm_jax.load(folder)


def pairs_run(folder, **card):
    return exported.write(folder, card={"config": {"prompt_field": "prompt"}, **card})


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return mdlm_jax.load(pairs_run(tmp_path_factory.mktemp("pairs") / "run"))


def test_what_is_loaded_is_what_was_written(model, folder):
    trained = workdir.load(epath.Path(folder))
    assert mdlm_jax.load(folder, step=exported.STEP).model.step == exported.STEP
    jax.tree.map(np.testing.assert_array_equal, model.params, trained.params)
    assert model.encoder == trained.encoder and model.mask_id == trained.encoder.mask_id
    assert model.tokenizer.to_str() == trained.tokenizer.to_str()
    assert repr(model).endswith(
        f"diffusion, {sum(x.size for x in jax.tree.leaves(model.params)):,} parameters, "
        f"rows of 16 tokens, ema at step {exported.STEP})"
    )


@pytest.mark.slow
def test_gaps_are_filled_as_generate_fills_them(model, folder):
    """Sample for sample, with every option that both have."""
    options = {"steps": 3, "temperature": 0.7, "top_k": 9, "forbid": ["[UNK]"], "length": 12}
    flags = ["--steps=3", "--temperature=0.7", "--top_k=9", "--forbid=[UNK]", "--length=12"]
    flags += ["--strategy=threshold(0.1)", "--seed=5", "--label=wool", "--guidance=2"]
    prompt, gaps = "the old [MASK] mill", "wool {mask:4}"
    done = run(
        "generate", f"--workdir={folder}", f"--prompt={prompt}",
        "--prompt=wool {{mask:4}}", "--samples=2", "--json", *flags,
    )  # fmt: skip
    told = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    made = model.fill(
        [prompt, gaps], samples=2, seed=5, label="wool", strategy="threshold(0.1)", guidance=2.0,
        **options,
    )  # fmt: skip
    assert [*made[0], *made[1]] == told
    assert len({*made[1]}) == 2  # two samples of four masks


def test_one_text_is_one_text(model):
    filled = model.fill("the [MASK] mill", steps=1)
    assert isinstance(filled, str) and filled.startswith("the ") and filled.endswith(" mill")
    assert "[MASK]" not in filled
    assert model.fill(["the [MASK] mill"], steps=1) == [filled]
    assert model.fill([]) == []
    assert len(model.fill("", steps=1).split()) > 3  # a whole row


@pytest.mark.slow
def test_likelihood_is_that_of_the_rooms_below(model, folder):
    """A long text counts every token once; another seed is another estimate."""
    texts = [" ".join(WORDS), WORDS[0]]
    bound = model.likelihood(texts, draws=8)
    ids = [model.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    parts = [part for each in ids for part in answering.split(each, model.model.length)]
    assert bound.tokens.tolist() == [len(part) for part in parts]
    one = mdlm_jax.nelbo(  # the same rows and draws, by hand
        model.denoiser_of(
            model.params,
            valid=jnp.arange(16) < jnp.array([[len(part)] for part in parts]),
            label=jnp.full(len(parts), -1),
        ),
        mdlm_jax.diffusion.noise.derive(mdlm_jax.diffusion.noise.seed_key(0), "evaluation"),
        jnp.array([[*part, *[0] * (16 - len(part))] for part in parts]),
        maskable=jnp.arange(16) < jnp.array([[len(part)] for part in parts]),
        mask_id=model.mask_id,
        draws=8,
    )
    np.testing.assert_allclose(bound.nats, one.nats, rtol=1e-5)
    other = model.likelihood(texts, draws=8, seed=1)
    assert not np.allclose(other.nats, bound.nats, rtol=1e-4)
    assert repr(bound).endswith(f"{bound.tokens.sum()} tokens of {len(parts)} rows")


def test_special_tokens_that_are_spelt_out_are_plain_text(model):
    text = "[MASK] wool"
    ids = data.tokens.tokenization.literal(model.tokenizer).encode(text).ids
    assert model.mask_id not in ids and len(ids) > len(model.tokenizer.encode(text).ids)
    assert model.likelihood(text, draws=2).tokens.tolist() == [len(ids)]


def test_bert_of_hugging_face_is_loaded_and_fills():
    """A golden checkpoint of random weights, which was trained for nothing."""
    model = mdlm_jax.load(GOLDEN / "bert")
    assert model.model.objective.name == "mlm" and model.card == {}
    assert model.fill("{mask:8}", steps=2, forbid=["[PAD]"])
    assert model.likelihood("the", draws=2).tokens.sum() >= 1
    with pytest.raises(ValueError, match="one kind of weights, and not 'params'"):
        mdlm_jax.load(GOLDEN / "bert", weights="params")


@pytest.mark.slow
def test_a_causal_model_is_exact_and_writes_from_left_to_right(tmp_path):
    folder = exported.write(tmp_path / "causal", attention="causal")
    config = json.loads((folder / "config.json").read_text())
    config["objective"]["name"] = "autoregressive"
    (folder / "config.json").write_text(json.dumps(config))
    model = mdlm_jax.load(folder)
    told = model.likelihood("wool salt and honey")
    ids = model.tokenizer.encode("wool salt and honey", add_special_tokens=False).ids
    expected = mdlm_jax.causal_likelihood(
        model.denoiser, jnp.array([ids]), start_id=data.special_ids(model.tokenizer).sep
    )
    np.testing.assert_allclose(told.nats, expected.nats, rtol=1e-5)
    assert told.mc_variance.tolist() == [0] and "(masks)" not in repr(told)
    done = run("generate", f"--workdir={folder}", "--prompt=the {{mask:4}}", "--seed=2")
    written = model.fill("the {mask:4}", seed=2)
    assert written == done.stdout.removesuffix("\n") and written.startswith("the")
    assert model.fill("the {mask:4}", seed=3) != written
    with pytest.raises(ValueError, match="steps is for models that fill masks: this run was"):
        model.fill("the [MASK]", steps=3)
    with pytest.raises(ValueError, match="has text behind a gap"):
        model.fill("the [MASK] mill")


def test_the_denoiser_serves_inside_jit_closed_over_or_of_an_argument(model):
    tokens = jnp.full((1, 4), model.mask_id)

    def write(denoiser):
        key = jax.random.key(0)
        return mdlm_jax.sample(denoiser, key, tokens, mask_id=model.mask_id, steps=2)

    closed = jax.jit(lambda: write(model.denoiser))()
    given = jax.jit(lambda params: write(model.denoiser_of(params)))(model.params)
    np.testing.assert_array_equal(closed, given)
    assert not np.any(closed == model.mask_id)


@pytest.mark.slow
def test_a_run_of_pairs_answers_as_generate_does(answers, tmp_path):
    done = run("generate", f"--workdir={answers.name}", "--prompt=old mill?", "--steps=4")
    answer = answers.answer("old mill?", steps=4)
    assert answer == done.stdout.removesuffix("\n") and "old mill" not in answer
    several = answers.answer(["old mill?", "salt"], steps=4, samples=2)
    assert several[0][0] == answer and [len(each) for each in several] == [2, 2]


def test_a_run_of_conversations_takes_messages(tmp_path):
    template = "{% for m in messages %}the {{ m.content }} {% endfor %}"
    card = {"config": {"messages_field": "talk"}, "chat_template": template}
    model = mdlm_jax.load(exported.write(tmp_path / "run", card=card))
    told = model.answer([{"role": "user", "content": "salt?"}], steps=2)
    assert told == model.answer("salt?", steps=2)
    with pytest.raises(ValueError, match="message 1 must have the texts"):
        model.answer([{"content": "salt?"}])


def test_what_cannot_be_done_is_said_in_one_line(model, answers):
    refused = [
        (lambda: model.fill("the mill"), "has nothing to fill"),
        (
            lambda: model.fill("the [MASK]", stepz=3),
            r"unknown option stepz \(do you mean steps\?\)",
        ),
        (lambda: model.fill("the [MASK]", steps=0), "steps must be at least 1"),
        (lambda: model.fill("the [MASK]", samples=0), "samples must be at least 1"),
        (lambda: model.fill("the [MASK]", length=17), "length must be from 1 to 16"),
        (lambda: model.fill("the [MASK]", temperature=-1.0), "temperature"),
        (lambda: model.fill("the [MASK]", label="nope"), "a label must be one of salt, wool"),
        (lambda: model.fill("the [MASK]", guidance=2.0), "guidance needs a label"),
        (lambda: model.answer("the"), r"was not trained on pairs .* use fill"),
        (lambda: model.likelihood([WORDS[0], ""]), "text '' has no token"),
        (lambda: model.likelihood("wool", draws=1), "draws is 1"),
        (lambda: answers.answer("the [MASK]"), r"has gaps: use fill\(text\)"),
        (lambda: answers.fill(""), r"use answer\(prompt\)"),
        (lambda: mdlm_jax.load("nowhere/at/all"), "no folder at"),
        (lambda: mdlm_jax.load(model.name, step=exported.STEP + 1), "step 8"),
        (lambda: mdlm_jax.load(model.name, weights="params"), "only 'ema'"),
    ]
    for call, told in refused:
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            call()


@pytest.mark.slow
def test_the_guide_runs_as_it_stands(folder, answers, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "from_python.md").read_text()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(folder)
    (tmp_path / "runs" / "pairs").symlink_to(answers.name)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(compile(block, "from_python.md", "exec"), names)
    assert len(names["drafts"]) == 4 and len(names["several"]) == 2
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Model('runs/quickstart'") and said[1].startswith("the river")
    assert "nats per token" in said[-1]
    named = {name for name in requests.Options.__dataclass_fields__ if f"`{name}`" in page}
    assert named == {*requests.Options.__dataclass_fields__}
