"""A family is a file: one of a test is trained, measured and sampled, and nothing else knows it."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from mdlm_jax import data
from mdlm_jax.diffusion import corrupt
from mdlm_jax.host import parallel
from mdlm_jax.runs import families, hooks
from mdlm_jax.runs.experiment import Experiment, ObjectiveConfig, default_config
from mdlm_jax.runs.families import masks
from mdlm_jax.runs.program import make_program

LENGTH, VOCAB, MASK = 8, 12, 3
MESH = parallel.make_mesh(devices=jax.devices()[:1])


def of_second_halves(objective, config, *, paired, start_id):
    """Nothing but the second half of a row is ever masked."""

    def prepare(key, step, batch):
        late = jnp.arange(LENGTH)[None] >= LENGTH // 2
        corrupted = corrupt(
            key, batch["tokens"], mask_id=config.mask_id, maskable=batch["maskable"] & late,
            paired=paired,
        )  # fmt: skip
        return masks.with_corrupted(batch, corrupted)

    return prepare


@pytest.fixture
def halves(monkeypatch):
    module = types.ModuleType("mdlm_jax.runs.families.halves")
    module.FAMILY = masks.FAMILY._replace(make_prepare=of_second_halves)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(families.NAMES, "halves", "halves")
    return module.FAMILY


@pytest.mark.slow
def test_a_family_of_ones_own_is_trained_measured_and_sampled(halves):
    config = default_config()
    config.data.update(vocab_size=VOCAB, length=LENGTH)
    config.model.update(layers=1, width=16, heads=2, mlp_width=16, dropout=0.0)
    config.objective.name = "halves"
    config.optimizer.update(warmup_steps=0, learning_rate=0.01)
    config.training.update(batch_size=8, steps=20)
    config.evaluation.update(rows=4, draws=2, sample_steps=2)
    settings = Experiment.of(config.to_dict())
    assert settings.family is halves
    words = {f"w{i}": i for i in range(VOCAB) if i > 4}
    special = {"[PAD]": 0, "[UNK]": 1, "[SEP]": 2, "[MASK]": MASK, "[CLS]": 4}
    tokenizer = Tokenizer(models.WordLevel({**special, **words}, unk_token="[UNK]"))
    rows = data.Rows(
        np.random.default_rng(0).integers(5, VOCAB, (16, LENGTH)).astype(np.int32),
        np.full(16, -1, np.int32),
    )
    prepared = data.Prepared(
        tokenizer, {"train": rows, "validation": rows}, (), VOCAB, MASK, 0, 2, "", {}, None
    )
    encoder = settings.encoder(prepared)
    program = make_program(settings, encoder, MESH, start_id=2)
    batch = data.train_batches(rows, batch_size=8, seed=0).at(0)
    canvas = jax.jit(program.prepare)(jax.random.key(0), 0, batch)["corrupted"].canvas
    assert (canvas[:, : LENGTH // 2] != MASK).all() and (canvas == MASK).any()
    state, losses = program.init(), []
    for _ in range(20):
        state, metrics = program.step(state, parallel.put_batch(batch, MESH, 8))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    made = hooks.make_hooks(program, prepared)
    assert made["eval"](state, 20)["likelihood"] == "bound"
    assert made["sample"](state, 20)["text"]
    measure = halves.make_measure(
        settings.objective, encoder, start_id=2, seed=0, draws=2, mesh=MESH, curve=True
    )
    done = []
    figures = measure.of_rows(state.ema, rows, 8, done.append)
    assert sum(done) == measure.passes * len(rows) and len(figures["rate_curve"]) > 1


def test_a_name_of_no_family_is_refused():
    with pytest.raises(ValueError, match=r"objective.name must be .*diffusion.*not 'halves'"):
        ObjectiveConfig(name="halves")
    with pytest.raises(
        ValueError, match="must be one of diffusion, mlm, autoregressive, block, not 'x'"
    ):
        families.family_of("x")
