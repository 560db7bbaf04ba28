"""A model that is asked in text, with random weights, and what it makes of text."""

import dataclasses
import itertools

import compilations
import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import TEXT
from tokenizers import Tokenizer, models, pre_tokenizers

from mdlm_jax import data
from mdlm_jax.data import decode, special_ids
from mdlm_jax.diffusion import causal_likelihood
from mdlm_jax.evaluation.bounds import continuations, likelihoods
from mdlm_jax.host import parallel
from mdlm_jax.networks import bert
from mdlm_jax.runs import models as loading
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.writing import answering, filling

WORDS = TEXT.split()
TEXTS = [" ".join(WORDS), WORDS[0], " ".join(WORDS[:20])]


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    folder = exported.write(tmp_path_factory.mktemp("answering") / "run")
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    return answering.Answerer(loading.load(str(folder), mesh), mesh, draws=4, steps=4)


def test_a_pair_is_split_where_the_context_ends():
    words = {"[UNK]": 0, "[MASK]": 1, "[SEP]": 2, "a": 3, "b": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert answering.encode_pair(tokenizer, "a b ", "b a") == ([3, 4], [4, 3])
    assert answering.encode_pair(tokenizer, "a b", " b") == ([3, 4], [4])
    assert answering.encode_pair(tokenizer, "", "b") == ([], [4])
    assert answering.encode_pair(tokenizer, "\n", "b") == ([], [4])
    # A continuation that begins within a word changes the last token of the context, not its own.
    assert answering.encode_pair(tokenizer, "a b", "b a") == ([3, 0], [3])
    for context, continuation in (("a b", ""), ("a ", "\n"), ("a b", "b")):
        with pytest.raises(ValueError, match="adds no token"):
            answering.encode_pair(tokenizer, context, continuation)


def test_what_cannot_be_scored_is_impossible_and_ends_nothing(answerer):
    """An empty choice, and one that is longer than a row, among others."""
    context = WORDS[0]
    pairs = [(context, ""), (context, " old"), (context, " old" * 40)]
    scored = answerer.continuations(pairs, greedy=False)
    assert np.isinf(scored.nats).tolist() == [True, False, True]
    assert scored.error[::2].tolist() == [0, 0] and scored.cut.tolist() == [0, 0, 0]
    alone = score(answerer, [answering.encode_pair(answerer.model.tokenizer, *pairs[1])])
    assert scored.nats[1] == pytest.approx(alone.nats[0], rel=1e-5)
    none = answerer.continuations(pairs[::2], greedy=True)
    assert np.isinf(none.nats).all() and none.greedy.tolist() == [False, False]


@pytest.mark.parametrize(("size", "parts"), [(0, []), (5, [5]), (6, [3, 3]), (13, [4, 4, 5])])
def test_a_text_is_split_into_few_even_rows(size, parts):
    ids = list(range(size))
    rows = answering.split(ids, 5)
    assert [len(row) for row in rows] == parts and list(itertools.chain(*rows)) == ids


def test_a_text_is_cut_at_the_first_stop():
    assert answering.cut_at("one two one", ["two", "ne"]) == "o"
    assert answering.cut_at("one two", ["three", ""]) == "one two"
    assert answering.cut_at("one", []) == "one"


def test_every_token_of_a_text_counts_once(answerer):
    """Against the bounds of its rows, scored as continuations of nothing."""
    model = answerer.model
    nats = answerer.texts(TEXTS)
    ids = [model.tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert [len(each) > model.length for each in ids] == [True, False, True]
    rows = [answering.split(each, model.length) for each in ids]
    of_rows = iter(score(answerer, [((), row) for mine in rows for row in mine]).nats)
    expected = [sum(itertools.islice(of_rows, len(mine))) for mine in rows]
    np.testing.assert_allclose(nats, expected, rtol=1e-5)
    assert nats[0] > len(ids[0])  # random weights: about log(121) nats a token


def score(answerer, pairs):
    model = answerer.model
    return continuations.log_likelihoods(
        likelihoods.denoiser_of(model.encoder), model.params, pairs, mask_id=model.encoder.mask_id,
        max_length=model.length, time_conditioning=False, draws=answerer.draws, seed=answerer.seed,
        batch_size=answerer.batch_size, mesh=answerer.mesh,
    )  # fmt: skip


def test_an_answer_is_what_follows_its_context(answerer):
    """Of a context that does not fit, of its end."""
    encode = answerer.model.tokenizer.encode
    end = " ".join(WORDS[-2:])
    blanks = answerer.model.length - len(encode(end, add_special_tokens=False).ids)
    assert blanks > 2
    answers = answerer.answers(["", " ".join(WORDS), end, WORDS[0]], tokens=blanks)
    assert answers[1] == answers[2] and len({*answers}) > 2
    mask_id = answerer.model.encoder.mask_id
    for answer in answers:
        ids = encode(answer, add_special_tokens=False).ids
        assert len(ids) <= blanks and mask_id not in ids
    with pytest.raises(ValueError, match="an answer must have 1 to 15 tokens, not 16"):
        answerer.answers([""], tokens=16)


def test_the_white_space_of_an_answer_is_text(tmp_path, answerer):
    """Of a model that writes nothing but new lines, so that a stop at the very start is seen."""
    tokenizer = data.train_tokenizer([" \n".join(WORDS)], kind="characters", vocab_size=121,
                                     lowercase=True)  # fmt: skip
    line = tokenizer.token_to_id("\n")
    folder = exported.write(tmp_path / "run", use_bias=True)
    model = loading.load(str(folder), answerer.mesh)._replace(tokenizer=tokenizer)
    bias = model.params["head"]["bias"]
    model.params["head"]["bias"] = jnp.where(jnp.arange(len(bias)) == line, 1e3, bias)
    (answer,) = dataclasses.replace(answerer, model=model).answers(["old"], tokens=3)
    assert answer == "\n\n\n" and answering.cut_at(answer, ["\n"]) == ""


def test_a_second_call_compiles_nothing(answerer):
    """Of a new answerer of the same model, as the harness makes one."""
    pairs = [(WORDS[0], " ".join(WORDS[i : i + 2])) for i in (3, 6, 9)]

    def ask(answerer, count):
        answerer.continuations(pairs[:count], greedy=True)
        answerer.texts(TEXTS[:count])
        return answerer.answers(TEXTS[:count], tokens=4)

    first = ask(answerer, 3)
    again = dataclasses.replace(answerer, seed=1)
    with compilations.counted() as compiled:
        ask(again, 3)
        assert ask(dataclasses.replace(answerer), 3) == first
    assert not compiled


@pytest.mark.parametrize("padded", [False, True])
def test_behind_an_answer_is_what_training_had_there(answerer, padded, monkeypatch):
    """Text that nobody knows; or, of rows of one text each, a separator and padding."""
    seen = []
    fill = filling.fill
    monkeypatch.setattr(filling, "fill", lambda *a, **k: seen.append(a[4]) or fill(*a, **k))
    model = answerer.model._replace(padded=padded)
    dataclasses.replace(answerer, model=model).answers([WORDS[0]], tokens=3)
    (canvas,) = seen
    special, size = special_ids(model.tokenizer), canvas.shown.sum()
    behind = canvas.tokens[0, size:].tolist()
    if padded:
        assert behind == [special.sep] + [special.pad] * (model.length - size - 1)
        assert canvas.valid[0].tolist() == [True] * (size + 1) + [False] * len(behind[1:])
    else:
        assert set(behind) == {special.mask} and canvas.valid is None


@pytest.mark.parametrize("keep", ["", "prefix"])
def test_of_kept_contexts_the_time_is_that_of_what_is_written(answerer, keep, monkeypatch):
    """The time is the masked share of what training may mask."""
    seen = []
    fill = filling.fill
    monkeypatch.setattr(filling, "fill", lambda *a, **k: seen.append(a[4]) or fill(*a, **k))
    objective = dataclasses.replace(answerer.model.objective, keep=keep)
    model = answerer.model._replace(objective=objective)
    dataclasses.replace(answerer, model=model).answers([WORDS[0]], tokens=3)
    (canvas,) = seen
    masks = canvas.tokens == special_ids(model.tokenizer).mask
    maskable = np.ones_like(masks) if canvas.maskable is None else canvas.maskable
    np.testing.assert_array_equal(maskable, masks if keep else np.ones_like(masks))
    assert not masks.all()


@pytest.mark.slow
def test_a_causal_model_is_exact_and_writes_from_left_to_right(tmp_path, answerer):
    folder = exported.write(tmp_path / "causal", attention="causal")
    model = loading.load(str(folder), answerer.mesh)
    causal = dataclasses.replace(
        answerer, model=model._replace(objective=ObjectiveConfig(name="autoregressive"))
    )
    ids = model.tokenizer.encode("wool salt and honey", add_special_tokens=False).ids
    expected = causal_likelihood(
        bert.denoiser(model.params, model.encoder),
        jnp.array([ids], jnp.int32),
        start_id=special_ids(model.tokenizer).sep,
    )
    scored = causal.continuations([("", "wool salt and honey")], greedy=False)
    assert scored.nats[0] == pytest.approx(float(expected.nats[0]), rel=1e-5)
    assert scored.error[0] == 0
    sep = special_ids(model.tokenizer).sep
    row = [sep, *ids]
    for _ in range(3):  # the most likely token, of a row that ends there
        logits = bert.logits(model.params, model.encoder, jnp.array([row], jnp.int32), jnp.ones(1))
        row.append(int(jnp.argmax(logits[0, -1].at[model.encoder.mask_id].set(-jnp.inf))))
    written = list(itertools.takewhile(lambda token: token != sep, row[1 + len(ids) :]))
    assert causal.answers(["wool salt and honey"], tokens=3) == [decode(model.tokenizer, written)]


def test_an_unknown_strategy_is_refused_at_once(answerer):
    with pytest.raises(ValueError, match="strategy 'nope' must be one of"):
        answering.Answerer(answerer.model, answerer.mesh, strategy="nope")
