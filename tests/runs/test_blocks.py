"""The family of blocks: trained, measured and sampled; what does not fit is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import params_of
from tokenizers import Tokenizer, models

from mdlm_jax import data
from mdlm_jax.diffusion import strategies
from mdlm_jax.evaluation.bounds import rate_curves
from mdlm_jax.host import parallel
from mdlm_jax.runs import following, hooks
from mdlm_jax.runs.experiment import Experiment, default_config
from mdlm_jax.runs.families import Blocks, Cache
from mdlm_jax.runs.program import make_program, pairs_rows
from mdlm_jax.runs.sampler import Method, make_writer
from mdlm_jax.runs.shaping import Shaping
from mdlm_jax.training.step import split_batch

pytestmark = pytest.mark.slow  # trains and samples

LENGTH, VOCAB, MASK = 8, 12, 3
MESH = parallel.make_mesh(devices=jax.devices()[:1])


def config_of(**objective):
    config = default_config()
    config.data.update(vocab_size=VOCAB, length=LENGTH)
    config.model.update(layers=2, width=16, heads=2, mlp_width=16, dropout=0.0, positions="rope")
    config.objective.update(name="block", **{"block_size": 4, **objective})
    config.optimizer.update(warmup_steps=0, learning_rate=0.02)
    config.training.update(batch_size=8, steps=20)
    config.evaluation.update(rows=4, draws=2, sample_steps=4)
    return config


def experiment_of(**objective):
    return Experiment.of(config_of(**objective).to_dict())


@pytest.fixture(scope="module")
def prepared():
    """Texts that count on by one, from anywhere."""
    words = {f"w{i}": i for i in range(5, VOCAB)}
    special = {"[PAD]": 0, "[UNK]": 1, "[SEP]": 2, "[MASK]": MASK, "[CLS]": 4}
    tokenizer = Tokenizer(models.WordLevel({**special, **words}, unk_token="[UNK]"))
    first = np.random.default_rng(0).integers(0, VOCAB - 5, (16, 1))
    tokens = 5 + (first + np.arange(LENGTH)) % (VOCAB - 5)
    rows = data.Rows(tokens.astype(np.int32), np.full(16, -1, np.int32))
    splits = {"train": rows, "validation": rows}
    return data.Prepared(tokenizer, splits, (), VOCAB, MASK, 0, 2, "", {}, None)


def trained(settings, prepared, steps=20, mesh=MESH):
    program = make_program(settings, settings.encoder(prepared), mesh, start_id=2)
    batch = data.train_batches(prepared.splits["train"], batch_size=8, seed=0).at(0)
    state, losses = program.init(), []
    for _ in range(steps):
        state, metrics = program.step(state, parallel.put_batch(batch, mesh, 8))
        losses.append(float(metrics["loss"]))
    return program, state, losses


@pytest.fixture(scope="module")
def run(prepared):
    return trained(experiment_of(), prepared, steps=60)


def test_blocks_are_trained_measured_and_shown(run, prepared):
    program, state, losses = run
    assert np.mean(losses[-5:]) < 0.85 * losses[0]
    made = hooks.make_hooks(program, prepared)
    figures = made["eval"](state, 60)
    assert figures["likelihood"] == "bound" and figures["mc_error"] > 0
    assert made["sample"](state, 60)["text"]


def test_the_curve_is_over_the_counts_of_a_block_and_its_mean_is_the_bound(run, prepared):
    program, state, _ = run
    measure = program.experiment.family.make_measure(
        program.experiment.objective,
        program.encoder,
        start_id=2,
        seed=0,
        draws=32,
        mesh=MESH,
        curve=True,
    )
    done = []
    figures = measure.of_rows(state.ema, prepared.splits["validation"], 8, done.append)
    assert sum(done) == measure.passes * 16 and figures["block_size"] == 4
    rates = [point["rate"] for point in figures["rate_curve"]]
    assert rates == [0.25, 0.5, 0.75, 1.0]
    # Both estimate one number; seeds are fixed, four errors would fail once in 15,000 draws.
    error = math.hypot(
        figures["mc_error"], *(point["error"] / 4 for point in figures["rate_curve"])
    )
    far = figures["rate_curve_trapezoid"] - figures["nats_per_token"]
    assert abs(far) < 4 * error


def test_counts_between_the_measured_ones_lie_on_lines():
    points = [{"rate": 0.25, "nats": 1.0}, {"rate": 1.0, "nats": 4.0}]
    assert rate_curves.mean_over_counts(points, 4) == pytest.approx((1 + 2 + 3 + 4) / 4)


def test_blocks_of_one_token_are_measured_exactly(prepared):
    settings = experiment_of(block_size=1)
    program, state, _ = trained(settings, prepared, steps=1)
    family, rows = settings.family, prepared.splits["validation"]
    assert family.is_exact(settings.objective)
    made = [
        family.make_measure(
            settings.objective,
            program.encoder,
            start_id=2,
            seed=seed,
            draws=2,
            mesh=MESH,
            curve=True,
        ).of_rows(state.ema, rows, 8)
        for seed in (0, 1)
    ]
    assert made[0] == made[1]  # nothing is drawn
    assert made[0]["likelihood"] == "exact" and made[0]["mc_error"] == 0
    assert "rate_curve" not in made[0]


def test_one_block_of_the_whole_row_trains_as_full_diffusion(prepared):
    whole = config_of(block_size=LENGTH)
    full = config_of(block_size=0)
    full.objective.name = "diffusion"
    losses = [
        trained(Experiment.of(config.to_dict()), prepared, steps=3)[2] for config in (whole, full)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize("size", [2, LENGTH])
def test_a_microbatch_has_its_share_of_every_leaf(size, prepared):
    config = config_of(block_size=size)
    config.training.accumulation = 2
    settings = Experiment.of(config.to_dict())
    program = make_program(settings, settings.encoder(prepared), MESH, start_id=2)
    batch = data.train_batches(prepared.splits["train"], batch_size=8, seed=0).at(0)
    made = program.prepare(jax.random.key(0), 0, batch)["corrupted"]
    loss_fn = settings.family.make_loss(settings.objective, program.encoder)
    params = program.init().params
    whole, _ = loss_fn(params, jax.random.key(0), {"corrupted": made})
    parts = split_batch({"corrupted": made}, 2)
    halves = [
        loss_fn(params, jax.random.key(0), jax.tree.map(lambda x, i=i: x[i], parts))[0]
        for i in range(2)
    ]
    np.testing.assert_allclose(whole, sum(halves), rtol=2e-3)
    # Of blocks that share slots, half of L and a bit are read out.
    assert made.positions.size == 8 * LENGTH * (size + 1) // (2 * size)
    assert pairs_rows(settings, MESH) == (size == LENGTH)


def writer(run, **changes):
    program, state, _ = run
    method = Method(strategies.exact_count(), Shaping(), **{"in_blocks": Blocks(4), **changes})
    write = make_writer(program.encoder, MESH, method)

    def of(tokens, **batch):
        batch = {"tokens": tokens, "number": jnp.arange(len(tokens)), **batch}
        strengths = method.strengths()
        return write(state.params, jax.random.key(1), batch, method.steps, strengths)

    return of


@pytest.mark.parametrize(("steps", "a_block"), [(1, 1), (3, 2), (4, 2), (8, 4), (99, 4)])
def test_the_steps_are_spread_over_the_blocks_and_rounded_up(run, steps, a_block):
    tokens = jnp.full((2, LENGTH), MASK, jnp.int32)
    written, trace = writer(run, steps=steps)(tokens)
    assert (written != MASK).all()
    np.testing.assert_array_equal(trace.evaluations, 2 * a_block)


def test_a_row_that_is_no_whole_blocks_keeps_its_length(run):
    written, trace = writer(run, steps=8)(jnp.full((2, 6), MASK, jnp.int32))
    assert written.shape == trace.step.shape == (2, 6) and (written != MASK).all()


def test_a_window_writes_beyond_the_length_of_training(run):
    write = writer(
        run,
        steps=24,
        in_blocks=Blocks(4, 4),
    )
    tokens = jnp.full((2, 3 * LENGTH), MASK, jnp.int32)
    written, _ = write(tokens)
    assert (written != MASK).all()
    # What left the window is not seen: another first block leaves the fourth as it was, given the
    # second and the third.
    given = written.at[:, 12:16].set(MASK).at[:, 16:].set(MASK)
    others = given.at[:, :4].set(jnp.where(given[:, :4] == 7, 8, 7))
    np.testing.assert_array_equal(write(given)[0][:, 12:], write(others)[0][:, 12:])
    with pytest.raises(ValueError, match="max_length"):
        writer(run, steps=24)(tokens)


@pytest.mark.parametrize(
    "changes", [{"guidance": 3.0}, {"shaping": Shaping(repetition_penalty=4.0, temperature=0.7)}]
)
def test_in_one_block_a_guide_and_a_penalty_are_what_they_are_of_whole_rows(changes, prepared):
    config = config_of()
    config.model.update(classes=3, class_dropout=0.1)
    settings = Experiment.of(config.to_dict())
    encoder = settings.encoder(prepared._replace(label_names=("a", "b", "c")))
    tokens = jnp.full((8, LENGTH), MASK, jnp.int32).at[:, 2].set(6)
    batch = {"tokens": tokens, "number": jnp.arange(8), "label": jnp.arange(8) % 3}

    def written(in_blocks, **changes):
        shaping = changes.pop("shaping", Shaping())
        method = Method(
            strategies.exact_count(), shaping, steps=LENGTH, in_blocks=in_blocks, **changes
        )
        write = make_writer(encoder, MESH, method)
        strengths = method.strengths()
        return write(params_of(encoder, 0.3), jax.random.key(1), batch, method.steps, strengths)

    tokens, trace = written(Blocks(LENGTH), **changes)
    same, of_rows = written(None, **changes)
    np.testing.assert_array_equal(tokens, same)
    np.testing.assert_array_equal(trace.evaluations, of_rows.evaluations)
    assert np.any(tokens != written(Blocks(LENGTH))[0])
    in_twos, _ = written(Blocks(2), **changes)
    assert np.all(in_twos != MASK) and np.any(in_twos != written(Blocks(2))[0])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"blocks": 2}, "blocks is for models of whole rows.*in blocks of 4"),
        ({"cache": Cache("dual", 2, 2)}, "cache is for models of whole rows"),
    ],
)
def test_what_a_writer_of_blocks_does_not_take(changes, match):
    with pytest.raises(ValueError, match=match):
        Method(
            strategies.exact_count(),
            **{"shaping": Shaping(), "steps": 8, "in_blocks": Blocks(4), **changes},
        )


@pytest.mark.parametrize(
    ("section", "changes", "match"),
    [
        ("objective", {"block_size": 3}, "block_size 3 does not divide data.length 8"),
        ("objective", {"block_size": 0}, "objective.block_size must be at least 1, not 0"),
        ("objective", {"window": 6}, "objective.window must be a multiple of .* 4, or 0"),
        ("objective", {"window": -4}, "objective.window must be a multiple of .* 4, or 0"),
        ("objective", {"corruption": "bernoulli"}, "corruption must be 'exact'"),
        ("objective", {"curriculum_steps": 5}, "needs objective.name 'diffusion'"),
        ("objective", {"keep": "prefix"}, "objective.keep is for objectives that mask rows"),
        ("objective", {"name": "diffusion"}, "block_size is for objective.name 'block'"),
        ("data", {"rows": "padded"}, "packed rows and for pairs, not for data.rows 'padded'"),
        ("model", {"attention": "causal"}, "'block' with model.attention='causal': must be 'full'"),
        ("model", {"time_conditioning": True}, "model.time_conditioning=True: must be False"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_compiled(
    section, changes, match, prepared
):
    config = config_of()
    config[section].update(changes)
    with pytest.raises(ValueError, match=match):
        settings = Experiment.of(config.to_dict())
        make_program(settings, settings.encoder(prepared), MESH, start_id=2)


def test_the_keys_of_blocks_follow_another_objective_of_the_command_line():
    config = config_of(window=4)
    config.objective.name = "diffusion"
    settings, notes = following.experiment_of(config.to_dict(), ["objective.name"])
    assert (settings.objective.block_size, settings.objective.window) == (0, 0)
    assert sum("follows objective.name" in note for note in notes) == 2


def test_the_window_is_that_of_the_loss_and_of_the_likelihood(prepared):
    rows, figures = prepared.splits["validation"][:8], []
    for window in (0, 2):
        settings = experiment_of(window=window, block_size=2)
        assert settings.family.blocks(settings.objective) == Blocks(2, window or None)
        program = make_program(settings, settings.encoder(prepared), MESH, start_id=2)
        params = program.init().params
        of_rows = settings.family.make_likelihood(
            settings.objective, program.encoder, start_id=2, seed=0, draws=2, mesh=MESH
        )
        batch = {"tokens": jnp.asarray(rows.tokens), "maskable": jnp.ones(rows.tokens.shape, bool)}
        made = program.prepare(jax.random.key(0), 0, batch)
        loss, _ = settings.family.make_loss(settings.objective, program.encoder)(
            params, jax.random.key(0), made
        )
        figures.append((float(loss), float(of_rows(params, rows, 8).nats_per_token)))
    # Weights and draws are equal: what is not equal is what the network sees.
    assert all(one != other for one, other in zip(*figures, strict=True))
    assert np.isfinite(figures).all()
