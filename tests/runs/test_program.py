"""What the training step of a config draws, and which parameters it leaves alone."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import params_of
from scipy import stats

from mdlm_jax import data
from mdlm_jax.diffusion import corrupt, corrupt_causal, corrupt_mlm, noise, strategies
from mdlm_jax.evaluation.bounds import likelihoods
from mdlm_jax.evaluation.samples import features
from mdlm_jax.host import parallel
from mdlm_jax.networks import bert
from mdlm_jax.runs import program as program_module
from mdlm_jax.runs.experiment import SCHEDULES, Experiment, ObjectiveConfig, default_config
from mdlm_jax.runs.families.encoder import for_devices, make_loss
from mdlm_jax.runs.families.masks import highest_rate
from mdlm_jax.runs.program import make_prepare, make_program, pairs_rows
from mdlm_jax.runs.sampler import Method, make_writer
from mdlm_jax.runs.shaping import Shaping

ROWS, LENGTH, MASK = 256, 10, 19
ALARM = 1e-4  # of each p-value; seeds are fixed


def experiment(objective=(), optimizer=(), **start):
    config = default_config()
    config.data.update(vocab_size=MASK + 1, length=LENGTH)
    config.model.update(layers=2, width=16, heads=2, mlp_width=16, dropout=0.0)
    config.objective.update(dict(objective))
    config.optimizer.update(dict(warmup_steps=0, **dict(optimizer)))
    config.training.update(batch_size=ROWS, steps=100)
    return Experiment.of(config.to_dict())


def corrupted(objective, step, maskable=None):
    settings = experiment(objective)
    prepare = jax.jit(make_prepare(settings, settings.planned_encoder(), paired=False))
    tokens = jnp.ones((ROWS, LENGTH), jnp.int32)
    maskable = jnp.ones((ROWS, LENGTH), bool) if maskable is None else maskable
    batch = {"tokens": tokens, "maskable": maskable, "label": jnp.full(ROWS, -1)}
    canvas = prepare(jax.random.key(0), step, batch)["corrupted"].canvas
    return np.asarray(canvas) == MASK


def test_the_curriculum_rises_from_its_rate_to_1():
    objective = ObjectiveConfig(curriculum_steps=10, curriculum_rate=0.2)
    rates = [float(highest_rate(objective, step)) for step in (0, 5, 10, 11, 1000)]
    assert rates == pytest.approx([0.2, 0.6, 1.0, 1.0, 1.0])
    assert highest_rate(ObjectiveConfig(), 0) == 1.0


@pytest.mark.parametrize(("step", "most"), [(0, 2), (5, 6), (10, 10)])
def test_its_counts_are_uniform_up_to_the_rate_of_the_step(step, most):
    masked = corrupted({"curriculum_steps": 10, "curriculum_rate": 0.2}, step)
    counts = np.bincount(masked.sum(axis=1), minlength=LENGTH + 1)
    assert counts[0] == 0 and not counts[most + 1 :].any()
    # Stratified over the batch, so nearer to uniform than drawn counts are.
    assert stats.chisquare(counts[1 : most + 1]).pvalue > ALARM


def test_a_prefix_is_kept():
    masked = corrupted({"keep": "prefix"}, 0)
    assert masked.any(axis=1).all()
    first = masked.argmax(axis=1)
    assert len(set(first)) == LENGTH and np.mean(first) > 2  # 1.4 without
    assert np.array_equal(masked, corrupted({"keep": "prefix", "curriculum_steps": 1}, 9))


def test_a_span_is_filled_in_between_what_is_kept():
    masked = corrupted({"keep": "infill"}, 0)
    extent = LENGTH - masked[:, ::-1].argmax(axis=1) - masked.argmax(axis=1)
    assert masked.any(axis=1).all() and np.mean(extent) < LENGTH / 2


def test_what_the_data_never_mask_is_kept_too():
    maskable = jnp.arange(LENGTH) >= jnp.full((ROWS, 1), 6)
    for keep in ("prefix", "infill"):
        masked = corrupted({"keep": keep}, 0, maskable)
        assert not masked[:, :6].any() and masked[:, 6:].any(axis=1).all()
        assert len(set(masked.argmax(axis=1))) == 4


def test_what_is_not_asked_for_changes_no_mask():
    plain = corrupted({}, 3)
    assert np.array_equal(plain, corrupted({"curriculum_steps": 3}, 3))
    assert not np.array_equal(plain, corrupted({"keep": "prefix"}, 3))


MESH = parallel.make_mesh(devices=jax.devices()[:1])


def test_auto_is_decided_by_the_mesh_where_its_tpus_are_not_here():
    encoder = dataclasses.replace(experiment().planned_encoder(), attention_backend="auto")
    assert for_devices(encoder, "tpu", strict=True).attention_backend == "splash"
    assert for_devices(encoder, "cpu", strict=True).attention_backend == "auto"


@pytest.mark.parametrize(
    ("freeze", "told"),
    [
        ("embeddings,hed", r"optimizer.freeze: 'hed' names no parameters: .* head"),
        ("embeddings,blocks,head", "optimizer.freeze .* leaves nothing to train"),
    ],
)
def test_names_that_cannot_be_frozen_are_refused(freeze, told):
    settings = experiment(optimizer={"freeze": freeze})
    with pytest.raises(ValueError, match=told) as error:
        make_program(settings, settings.planned_encoder(), MESH)
    assert "\n" not in str(error.value)


def test_given_parameters_are_where_a_run_begins():
    settings = experiment(optimizer={"freeze": "embeddings", "layer_decay": 0.5})
    encoder = settings.planned_encoder()
    given = jax.device_get(bert.init(jax.random.key(9), encoder))
    program = make_program(settings, encoder, MESH)
    state = program.init_from(program.place(given))
    for tree in (state.params, state.ema):
        jax.tree.map(np.testing.assert_array_equal, tree, given)
    assert int(state.step) == 0
    assert jax.tree.structure(state) == jax.tree.structure(program.abstract_state())


def test_fresh_parameters_are_of_the_seed_and_of_no_other_noise():
    settings = experiment()
    settings = dataclasses.replace(
        settings, training=dataclasses.replace(settings.training, seed=2**31 + 5)
    )
    encoder = settings.planned_encoder()
    state = make_program(settings, encoder, MESH).init()
    key = noise.derive(noise.seed_key(2**31 + 5), "init")
    expected = jax.jit(partial(bert.init, config=encoder))(key)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), state.params, expected)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"curriculum_steps": -1}, "objective.curriculum_steps must be at least 0, not -1"),
        ({"curriculum_rate": 0.0}, r"objective.curriculum_rate must be in \(0, 1\], not 0.0"),
        ({"curriculum_steps": 5, "name": "mlm"}, "it needs objective.name 'diffusion' .* 'mlm'"),
        ({"curriculum_steps": 5, "corruption": "bernoulli"}, "exact counts: .*'bernoulli'"),
        ({"keep": "suffix"}, "objective.keep must be 'prefix', 'infill' or '' .*'suffix'"),
        ({"keep": "prefix", "name": "autoregressive"}, "objective.keep is for objectives that m"),
    ],
)
def test_bad_objectives_are_refused(changes, told):
    with pytest.raises(ValueError, match=told) as error:
        ObjectiveConfig(**changes)
    assert "\n" not in str(error.value)


def test_a_step_is_made_of_what_the_config_says(monkeypatch):
    """Every value that is handed on, each another than its default."""
    seen = {}
    for name in ("make_step", "make_prepare"):
        real = getattr(program_module, name)
        spy = lambda *args, real=real, **named: seen.update(named) or real(*args, **named)  # noqa: E731
        monkeypatch.setattr(program_module, name, spy)
    settings = experiment(optimizer={"decay": "linear", "learning_rate": 0.5})
    training = dataclasses.replace(
        settings.training, seed=3, ema_decay=0.7, accumulation=2, steps=40, batch_size=8
    )
    settings = dataclasses.replace(settings, training=training)
    program = make_program(settings, settings.planned_encoder(), MESH, start_id=2)
    told = {"seed": 3, "ema_decay": 0.7, "accumulation": 2, "paired": True, "start_id": 2}
    assert seen | told == seen
    assert seen["prepare"] is program.prepare and seen["shardings"] is program.shardings
    rates = [float(seen["schedule"](step)) for step in (0, 20, 40)]
    assert rates == pytest.approx([0.5, 0.275, 0.05])  # to a tenth


def test_muon_is_told_rows_and_columns_of_each_kernel():
    """Those that are multiplied by themselves: layers, q, k and v, a gated MLP's halves."""
    settings = experiment(optimizer={"name": "muon", "matrix_learning_rate": 0.01})
    encoder = dataclasses.replace(
        settings.planned_encoder(), gated=True, mlp_width=32, time_conditioning=True
    )
    found = by_name(program_module.matrices(settings, encoder))
    shapes = by_name(jax.eval_shape(lambda: bert.init(jax.random.key(0), encoder)))
    sizes = {
        name: tuple(math.prod(shapes[name].shape[i] for i in axes) for axes in dims)
        for name, dims in found.items()
        if dims is not None
    }
    assert {name for name in shapes if name.endswith("kernel")} == set(sizes)
    assert sizes == {
        "encoder/blocks/attention/qkv/kernel": (16, 16),
        "encoder/blocks/attention/out/kernel": (16, 16),
        "encoder/blocks/mlp/up/kernel": (16, 32),
        "encoder/blocks/mlp/down/kernel": (32, 16),
        "encoder/blocks/modulation/kernel": (16, 16),
        "encoder/time/up/kernel": (256, 16),
        "encoder/time/down/kernel": (16, 16),
        "head/transform/kernel": (16, 16),
    }
    assert program_module.matrices(experiment(), encoder) is None


def by_name(tree):
    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda x: x is None or hasattr(x, "_fields"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "pairs"), [(6, 1, True), (6, 3, True), (6, 2, False)]
)
def test_pairs_stay_within_a_microbatch(batch_size, accumulation, pairs):
    settings = experiment()
    training = dataclasses.replace(
        settings.training, batch_size=batch_size, accumulation=accumulation
    )
    assert pairs_rows(dataclasses.replace(settings, training=training), MESH) == pairs
    flat = dataclasses.replace(settings, objective=ObjectiveConfig(name="mlm"))
    assert not pairs_rows(flat, MESH)


@pytest.mark.parametrize("kind", ["dropout", "class_dropout"])
def test_a_loss_is_told_padding_labels_and_its_key(kind):
    settings = experiment()
    encoder = dataclasses.replace(
        settings.planned_encoder(), layers=1, classes=3, **{"dropout": 0.0, kind: 0.5}
    )
    valid = jnp.broadcast_to(jnp.arange(LENGTH) < LENGTH - 4, (8, LENGTH))
    batch = {
        "tokens": jnp.asarray(np.random.default_rng(0).integers(5, MASK, (8, LENGTH)), jnp.int32),
        "maskable": valid,
        "valid": valid,
        "label": jnp.arange(8) % 3,
    }
    prepare = jax.jit(make_prepare(settings, encoder, paired=False))
    prepared = prepare(jax.random.key(1), 0, batch)
    params, loss_fn = params_of(encoder), jax.jit(make_loss(settings.objective, encoder))

    def loss(key=2, **changes):
        return float(loss_fn(params, jax.random.key(key), {**prepared, **changes})[0])

    corrupted = prepared["corrupted"]
    padded = corrupted._replace(canvas=jnp.where(valid, corrupted.canvas, 7))
    assert loss(corrupted=padded) == loss() == loss(key=2)
    for changes in ({"valid": jnp.ones_like(valid)}, {"label": (batch["label"] + 1) % 3}):
        assert abs(loss(**changes) - loss()) > 1e-4, changes
    assert len({loss(key=key) for key in range(4)}) > 1  # alike by chance: 2^-24


OBJECTIVES = {
    "diffusion": {"schedule": "cosine"},
    "bernoulli": {"schedule": "cosine", "corruption": "bernoulli"},
    "mlm": {"name": "mlm", "rate": 0.4},
    "autoregressive": {"name": "autoregressive"},
}


@pytest.mark.parametrize(
    ("name", "paired"), [*((name, False) for name in OBJECTIVES), ("diffusion", True)]
)
def test_a_corruption_is_what_its_objective_names(name, paired):
    """Against the functions called by hand, for every value that is handed on."""
    objective = OBJECTIVES[name]
    settings = experiment(objective)
    encoder = settings.planned_encoder()
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(5, MASK, (8, LENGTH)), jnp.int32)
    maskable = jnp.asarray(rng.random((8, LENGTH)) < 0.8)
    batch = {"tokens": tokens, "maskable": maskable, "label": jnp.zeros(8, jnp.int32)}
    key = jax.random.key(5)
    prepare = jax.jit(make_prepare(settings, encoder, paired=paired, start_id=3))
    found = prepare(key, 0, batch)
    masked = {"mask_id": MASK, "maskable": maskable}
    if name == "autoregressive":
        by_hand = partial(corrupt_causal, start_id=3, maskable=maskable)
    elif name == "mlm":
        of_step = noise.derive(key, "masks")
        by_hand = partial(corrupt_mlm, of_step, vocab_size=MASK + 1, rate=0.4, **masked)
    else:
        by_hand = partial(
            corrupt, noise.derive(key, "masks"), paired=paired, **masked,
            schedule=SCHEDULES[objective.get("schedule", "linear")](),
            corruption=objective.get("corruption", "exact"),
        )  # fmt: skip
    expected = jax.jit(by_hand)(tokens)
    assert set(found) == {"corrupted", "label"}
    jax.tree.map(np.testing.assert_array_equal, found["corrupted"], expected)


KINDS = {
    "packed": ({}, {}),
    "padded": ({"rows": "padded"}, {"sizes": np.full(6, 3, np.int32)}),
    "pairs": (
        {"rows": "padded", "prompt_field": "prompt", "source": "text_files", "files": "a.jsonl"},
        {"sizes": np.full(6, 5, np.int32), "prompts": np.full(6, 2, np.int32)},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_as_the_step_is_compiled_for(kind):
    asked, parts = KINDS[kind]
    config = default_config()
    config.data.update({"length": LENGTH, **asked})
    config.model.update({"layers": 1, "width": 8, "heads": 1, "mlp_width": 8})
    config.training.batch_size = 4
    settings = Experiment.of(config.to_dict())
    expected = make_program(settings, settings.planned_encoder(), MESH).abstract_batch()
    rows = data.Rows(np.zeros((6, LENGTH), np.uint16), np.zeros(6, np.int32), **parts)
    batch = data.train_batches(rows, batch_size=4, seed=0).at(0)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in expected.items()
    }


@pytest.mark.parametrize("of", ["training", "likelihood", "sampler", "features"])
def test_padding_is_told_as_lengths(of, monkeypatch):
    """Without, cuDNN computes every query with every key; traced only."""
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91_000)  # which asks for the library
    length = 34  # as no other axis
    encoder = bert.Config(
        vocab_size=MASK + 1,
        mask_id=MASK,
        max_length=length,
        layers=1,
        width=16,
        heads=2,
        mlp_width=16,
        attention_backend="cudnn",
        dtype="bfloat16",
    )
    params = jax.eval_shape(lambda: bert.init(jax.random.key(0), encoder))
    rows = data.Rows(np.full((2, length), 5, np.int32), np.zeros(2, np.int32), np.int32([3, 30]))
    batch = next(data.eval_batches(rows, batch_size=2))

    def training(params):
        corrupted = corrupt(
            jax.random.key(0), batch["tokens"], mask_id=MASK, maskable=batch["maskable"]
        )
        prepared = {"corrupted": corrupted, "valid": batch["valid"], "label": batch["label"]}
        return make_loss(ObjectiveConfig(), encoder)(params, jax.random.key(0), prepared)[0]

    def likelihood(params):
        denoiser = likelihoods.denoiser_of(encoder)(params, batch)
        return denoiser.encode(batch["tokens"], jnp.zeros(2)).at

    def sampler(params):
        mesh = parallel.make_mesh(devices=jax.devices()[:1])
        write = make_writer(encoder, mesh, Method(strategies.exact_count(), Shaping(), steps=1))
        told = {"tokens": batch["tokens"], "number": batch["rows"], "valid": batch["valid"]}
        return write(params, jax.random.key(0), told, 1, {})[0]

    def collected(params):
        return features._states(params, encoder, batch["tokens"], batch["valid"], pooled=True)

    fn = {"training": training, "likelihood": likelihood, "sampler": sampler}.get(of, collected)
    traced = str(jax.make_jaxpr(fn)(params))
    assert "MaskType.PADDING" in traced
    assert f"{length},{length}]" not in traced
