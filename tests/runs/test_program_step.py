"""The step of a config against one that is written out by hand, and what fits a mesh."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.diffusion import corrupt_causal, corrupted_loss
from mdlm_jax.host import parallel
from mdlm_jax.networks import bert
from mdlm_jax.runs.experiment import Experiment, default_config
from mdlm_jax.runs.families.encoder import for_devices
from mdlm_jax.runs.program import make_program, padded_for

VOCABULARY, LENGTH, START = 20, 6, 3
MESH = parallel.make_mesh(devices=jax.devices()[:1])


def experiment(batch_size=4, **sections):
    config = default_config()
    config.data.update(vocab_size=VOCABULARY, length=LENGTH)
    config.model.update(layers=2, width=16, heads=2, mlp_width=16, dropout=0.0)
    config.optimizer.warmup_steps = 0
    config.training.update(batch_size=batch_size, steps=100)
    for name, values in sections.items():
        config[name].update(values)
    return Experiment.of(config.to_dict())


def program_of(*, start_id=None, vocab_multiple=1, **sections):
    settings = experiment(**sections)
    encoder = dataclasses.replace(settings.planned_encoder(), vocab_multiple=vocab_multiple)
    return make_program(settings, encoder, MESH, start_id=start_id)


def batch_of(size):
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(5, VOCABULARY - 1, (size, LENGTH)).astype(np.int32),
        "maskable": rng.random((size, LENGTH)) < 0.8,
        "label": np.full(size, -1, np.int32),
    }


@pytest.mark.slow
def test_a_step_is_the_one_that_its_config_names():
    """AdamW's first update is `rate g / (|g| + eps)`, halved by each block below the head."""
    rate, eps, ema_decay = 0.02, 0.01, 0.05
    program = program_of(
        start_id=START,
        objective={"name": "autoregressive"},  # which draws nothing
        model={"attention": "causal"},
        optimizer={
            "learning_rate": rate, "eps": eps, "clip_norm": 1e6, "weight_decay": 0.0,
            "layer_decay": 0.5,
        },
        training={"ema_decay": ema_decay},
    )  # fmt: skip
    state, batch = program.init(), batch_of(4)
    assert jax.tree.map(lambda x: x.sharding, state) == program.shardings
    before = jax.device_get(state.params)

    @jax.jit
    @jax.value_and_grad
    def by_hand(params):
        tokens, maskable = jnp.asarray(batch["tokens"]), jnp.asarray(batch["maskable"])
        corrupted = corrupt_causal(tokens, start_id=START, maskable=maskable)
        return corrupted_loss(bert.denoiser(params, program.encoder), corrupted)[0]

    def updated(path, x, slope):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        share = 1.0
        if "/blocks/" in name:
            share = np.array([1 / 4, 1 / 2]).reshape(2, *[1] * (x.ndim - 1))
        elif "/embeddings/" in name:
            share = 1 / 8
        return x - rate * share * slope / (np.abs(slope) + eps)

    loss, slopes = jax.device_get(by_hand(before))
    expected = jax.tree.map_with_path(updated, before, slopes)
    state, metrics = program.step(state, parallel.put_batch(batch, MESH, 4))
    assert jax.tree.map(lambda x: x.sharding, state) == program.shardings
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(metrics["learning_rate"]) == pytest.approx(rate)

    def compare(found, wanted):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=rate * 1e-3)

    jax.tree.map(compare, state.params, expected)
    ema = jax.tree.map(lambda x, new: x + (1 - ema_decay) * (new - x), before, expected)
    jax.tree.map(compare, state.ema, ema)


@pytest.mark.slow
def test_a_muon_step_moves_every_kernel_by_its_rate_and_lies_where_it_did():
    """Orthogonal updates: the directions that so small a batch has a gradient in move alike."""
    program = program_of(
        optimizer={
            "name": "muon", "matrix_learning_rate": 0.05, "learning_rate": 0.01,
            "weight_decay": 0.0,
        }
    )  # fmt: skip
    state = program.init()
    before = jax.device_get(state.params)
    state, metrics = program.step(state, parallel.put_batch(batch_of(4), MESH, 4))
    assert jax.tree.map(lambda x: x.sharding, state) == program.shardings
    assert float(metrics["learning_rate"]) == pytest.approx(0.01)
    moved = jax.tree.map(np.subtract, jax.device_get(state.params), before)
    blocks = moved["encoder"]["blocks"]
    matrices = [
        *np.moveaxis(blocks["attention"]["qkv"]["kernel"], 2, 1).reshape(6, 16, 16),
        *blocks["attention"]["out"]["kernel"].reshape(2, 16, 16),
        *blocks["mlp"]["up"]["kernel"],
        moved["head"]["transform"]["kernel"],
    ]
    for matrix in matrices:
        values = np.linalg.svd(matrix, compute_uv=False) / 0.05
        assert (values[:4] > 0.6).all() and values[0] < 1.3, values


def test_given_parameters_are_padded_for_the_mesh_and_given_up():
    program = program_of(vocab_multiple=8)
    given = jax.device_get(bert.init(jax.random.key(9), program_of().encoder))
    placed = program.place(given)
    state = program.init_from(placed)
    assert all(x.is_deleted() for x in jax.tree.leaves(placed))  # two copies may not fit
    grown = []

    def compare(path, found, whole):
        if found.shape != whole.shape:
            grown.append(jax.tree_util.keystr(path, simple=True, separator="/"))
            assert found.shape[0] == 24 and not found[VOCABULARY:].any()
            found = found[:VOCABULARY]
        np.testing.assert_array_equal(found, whole)

    jax.tree.map_with_path(compare, jax.device_get(state.params), given)
    assert "encoder/embeddings/tokens" in grown


@pytest.mark.parametrize(("tensor", "multiple", "rows"), [(3, 1, 21), (3, 8, 24), (4, 1, 20)])
def test_a_vocabulary_is_padded_to_what_the_tensor_axis_divides(tensor, multiple, rows):
    encoder = dataclasses.replace(experiment().planned_encoder(), vocab_multiple=multiple)
    mesh = SimpleNamespace(shape={"data": 1, "fsdp": 1, "tensor": tensor})
    assert padded_for(encoder, mesh).padded_vocab == rows


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        (
            {"objective": {"name": "autoregressive"}},
            "model.attention 'full' sees what objective.name 'autoregressive' predicts",
        ),
        (
            {"model": {"attention_backend": "splash"}},
            "model.attention_backend 'splash' is not for cpu devices",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_refused(sections, told):
    with pytest.raises(ValueError, match=told) as error:
        program_of(**sections)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("every", [1, 2])
def test_blocks_that_lift_their_window_are_not_for_the_tpus_kernel(every):
    encoder = dataclasses.replace(
        experiment().planned_encoder(), attention="local", window=2, global_every=every
    )
    assert for_devices(encoder, "tpu", strict=True).attention_backend == "xla"
