"""What a training run hands on to its hooks, of an encoder and data of our own."""

import dataclasses

import jax
import numpy as np
import pytest
from command_runs import TEXT
from networks.tiny import params_of

from mdlm_jax import data, decoding, filling, parallel, train
from mdlm_jax.diffusion import schedules
from mdlm_jax.evaluation import likelihoods, ngrams, text_sizes
from mdlm_jax.experiment import Experiment, default_config
from mdlm_jax.program import make_program
from mdlm_jax.prompts import Canvas
from mdlm_jax.training.state import TrainState

LENGTH, ROWS, LABELS = 12, 60, 3
SIZE = 9  # of the padded rows; of pairs, whose prompts have 4
MESH = parallel.make_mesh(devices=jax.devices()[:1])
TOKENIZER = data.train_tokenizer([TEXT], kind="characters", vocab_size=40, lowercase=True)
SPECIAL = data.special_ids(TOKENIZER)
VOCAB = data.vocabulary_size(TOKENIZER)


def rows_of(kind, seed):
    """Random text, sorted by label, which its first token tells too."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(LABELS, dtype=np.int32), ROWS // LABELS)
    ids = [i for i in range(VOCAB) if i not in {*SPECIAL}]
    tokens = rng.choice(ids, (ROWS, LENGTH)).astype(np.int32)
    tokens[:, 0] = np.array(ids)[labels]
    sizes = np.full(ROWS, SIZE, np.int32)
    if kind == "packed":
        return data.Rows(tokens, labels)
    fill_id = SPECIAL.pad if kind == "padded" else SPECIAL.sep
    tokens = np.where(np.arange(LENGTH) < SIZE, tokens, fill_id)
    return data.Rows(tokens, labels, sizes, np.full(ROWS, 4, np.int32) if kind == "pairs" else None)


def run_of(kind, **evaluation):
    """A program whose encoder is told time and label, and the data of its run."""
    config = default_config()
    config.data.update(length=LENGTH, rows="packed" if kind == "packed" else "padded")
    if kind == "pairs":
        config.data.update(prompt_field="prompt", source="text_files", files="a.jsonl")
    config.model.update(layers=1, width=16, heads=2, mlp_width=16, time_conditioning=True)
    config.objective.schedule = "cosine"
    config.evaluation.update(rows=6, batch_size=4, sample_steps=3, draws=2, **evaluation)
    config.training.batch_size = 8
    settings = Experiment.of(config.to_dict())
    encoder = dataclasses.replace(
        settings.planned_encoder(), vocab_size=VOCAB, mask_id=SPECIAL.mask, classes=LABELS
    )
    splits = {name: rows_of(kind, seed) for seed, name in enumerate(("train", "validation"))}
    prepared = data.Prepared(
        TOKENIZER, splits, tuple("abc"), VOCAB, SPECIAL.mask, SPECIAL.pad, SPECIAL.sep, "", {}, None
    )
    return make_program(settings, encoder, MESH), prepared


def state_of(program):
    """Raw weights beside an average that is another."""
    ema = jax.device_put(params_of(program.encoder), parallel.replicated(MESH))
    raw = jax.tree.map(lambda x: -x, ema)
    return TrainState(np.int32(7), raw, (), ema, np.int32(0))


@pytest.mark.parametrize("kind", ["packed", "padded", "pairs"])
def test_a_sample_is_of_the_average_in_a_row_as_the_data_have_it(kind):
    program, prepared = run_of(kind)
    state, encoder = state_of(program), program.encoder
    shown = train.make_hooks(program, prepared)["sample"](state, 7)["text"]
    row = prepared.splits["validation"].spread(6)[:1]
    place = np.arange(LENGTH)[None]
    wanted = (place >= (4 if kind == "pairs" else 0)) & (place < (SIZE if kind == "padded" else 99))
    valid = place < SIZE if kind == "padded" else None
    tokens = np.where(wanted, encoder.mask_id, row.tokens)
    canvas = Canvas(tokens, wanted, wanted, valid, wanted)

    def written(params, schedule):
        strategy = decoding.strategy("exact_count", schedule)
        method = filling.Method(strategy, decoding.Shaping(), steps=3)
        ((filled,),) = filling.fill(params, encoder, MESH, method, canvas, samples=8, first=7)
        text = filled.tokens[:SIZE] if kind == "padded" else filled.tokens
        return data.decode(TOKENIZER, text)

    assert shown == written(state.ema, schedules.cosine())
    if kind == "padded":  # once: each is a program
        assert shown != written(state.params, schedules.cosine())
        assert shown != written(state.ema, schedules.linear())


@pytest.mark.parametrize("kind", ["packed", "pairs"])
def test_validation_is_of_the_average_on_rows_of_all_labels(kind):
    """The figures of `evaluate`, of rows that are spread over a split sorted by label."""
    program, prepared = run_of(kind)
    state, encoder = state_of(program), program.encoder
    told = train.make_hooks(program, prepared)["eval"](state, 7)
    rows = prepared.splits["validation"].spread(6)
    assert sorted(rows.labels) == [0, 0, 1, 1, 2, 2]
    of_rows = likelihoods.make_nelbo(
        likelihoods.denoiser_of(encoder), mask_id=encoder.mask_id, seed=0, draws=2,
        schedule=schedules.cosine(), mesh=MESH,
    )  # fmt: skip
    figures = likelihoods.summary(of_rows(state.ema, rows, 4))
    size = text_sizes.text_size(rows, TOKENIZER)
    figures |= likelihoods.per_text_unit(figures["nats_per_token"], figures["tokens"], size)
    for key in ("nats_per_token", "mc_error", "text_error", "tokens", "bits_per_character"):
        assert told[key] == pytest.approx(figures[key], rel=1e-6), key
    counted = prepared.splits["train"], rows, VOCAB
    assert told["bigram"] == ngrams.bigram_cross_entropy(*counted)
    raw = likelihoods.summary(of_rows(state.params, rows, 4))
    assert abs(raw["nats_per_token"] - told["nats_per_token"]) > 0.01


def test_spread_rows_reach_both_ends():
    rows = rows_of("pairs", 0)
    for count in (1, 7, 59):
        chosen = rows.spread(count)
        place = [np.flatnonzero((rows.tokens == row).all(axis=1))[0] for row in chosen.tokens]
        gaps = np.diff([-1, *place, ROWS])
        assert len(chosen) == len(chosen.sizes) == len(chosen.prompts) == count
        assert gaps.min() >= 1 and gaps.max() <= -(-ROWS // count) + (count == 1)
    assert rows.spread(60) is rows and rows.spread(99) is rows
