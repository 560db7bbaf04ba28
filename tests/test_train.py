"""What a training run hands on to its hooks, of an encoder and data of our own."""

import dataclasses
import json
import os
import shlex
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import TEXT
from etils import epath
from networks.tiny import params_of

from mdlm_jax import data, train
from mdlm_jax.diffusion import noise, schedules
from mdlm_jax.evaluation.bounds import likelihoods, ngrams, text_sizes
from mdlm_jax.host import command_line, parallel
from mdlm_jax.runs import hooks, workdir
from mdlm_jax.runs.experiment import Experiment, default_config
from mdlm_jax.runs.program import make_program
from mdlm_jax.runs.sampler import Method
from mdlm_jax.runs.shaping import Shaping
from mdlm_jax.training import checkpoints
from mdlm_jax.training.loop import LoopConfig
from mdlm_jax.training.metrics import MetricsWriter, read_metrics
from mdlm_jax.training.state import TrainState
from mdlm_jax.writing import decoding, filling
from mdlm_jax.writing.canvases import Canvas

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


def run_of(kind, training=(), **evaluation):
    """A program whose encoder is told time and label, and the data of its run."""
    config = default_config()
    config.data.update(length=LENGTH, rows="packed" if kind == "packed" else "padded")
    if kind == "pairs":
        config.data.update(prompt_field="prompt", source="text_files", files="a.jsonl")
    config.model.update(layers=1, width=16, heads=2, mlp_width=16, time_conditioning=True)
    config.objective.schedule = "cosine"
    config.evaluation.update(rows=6, batch_size=4, sample_steps=3, draws=2, **evaluation)
    config.training.update(batch_size=8, **dict(training))
    config.optimizer.warmup_steps = 2
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
    shown = hooks.make_hooks(program, prepared)["sample"](state, 7)["text"]
    row = prepared.splits["validation"].spread(6)[:1]
    place = np.arange(LENGTH)[None]
    wanted = (place >= (4 if kind == "pairs" else 0)) & (place < (SIZE if kind == "padded" else 99))
    valid = place < SIZE if kind == "padded" else None
    tokens = np.where(wanted, encoder.mask_id, row.tokens)
    canvas = Canvas(tokens, wanted, wanted, valid, wanted)

    key = noise.derive(noise.seed_key(0), "shown", 7)

    def written(params, schedule):
        strategy = decoding.strategy("exact_count", schedule)
        method = Method(strategy, Shaping(), steps=3)
        ((filled,),) = filling.fill(params, encoder, MESH, method, canvas, key=key)
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
    told = hooks.make_hooks(program, prepared)["eval"](state, 7)
    rows = prepared.splits["validation"].spread(6)
    assert sorted(rows.labels) == [0, 0, 1, 1, 2, 2]
    of_rows = likelihoods.make_nelbo(
        likelihoods.denoiser_of(encoder), mask_id=encoder.mask_id, seed=0, draws=2,
        schedule=schedules.cosine(), mesh=MESH,
    )  # fmt: skip
    likelihood = of_rows(state.ema, rows, 4)
    figures = likelihoods.summary(likelihood)
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


@pytest.fixture(scope="module")
def short():
    """A run of 4 steps whose program is compiled once for all tests."""
    training = {"steps": 4, "save_every": 2, "log_every": 1, "keep_last": 1, "max_bad_steps": 7}
    dog = {"watchdog_seconds": 500, "watchdog_startup_seconds": 600}
    return run_of("packed", training | dog, every=3)


def job_of(short, folder, before=None, batches=None):
    program, prepared = short
    size, seed = program.experiment.training.batch_size, program.experiment.training.seed
    batches = batches or data.train_batches(prepared.splits["train"], batch_size=size, seed=seed)
    return train.Job(program, prepared, batches, epath.Path(folder), before)


class Stopping:
    """Batches, of which the last comes with a signal."""

    def __init__(self, batches):
        self.batches, self.rows = batches, batches.rows

    def iterate(self, start_step):
        for step in range(start_step, 4):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            yield self.batches.at(step)


@pytest.mark.slow
@pytest.mark.parametrize("cause", ["a crash", "a signal"])
def test_what_the_last_step_lacks_is_finished_by_the_next_start(
    short, tmp_path, monkeypatch, capsys, cause
):
    """And by that alone: what is there is not measured again."""
    job = job_of(short, tmp_path)
    if cause == "a signal":
        seen, fit = {}, train.fit
        with monkeypatch.context() as patch:
            patch.setattr(
                train, "fit", lambda *args, **named: seen.update(named) or fit(*args, **named)
            )
            stopping = job._replace(batches=Stopping(job.batches))
            assert train.train(stopping) == command_line.STOPPED
        assert seen["tokens_per_step"] == 8 * LENGTH
        assert seen["config"] == LoopConfig(
            steps=4, log_every=1, eval_every=3, save_every=2, max_bad_steps=7,
            watchdog_seconds=500, watchdog_startup_seconds=600,
        )  # fmt: skip
    else:
        make_hooks = hooks.make_hooks

        def fail(state, step):
            if step == 4:
                raise RuntimeError("no room")
            return {}

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no room"):
            patch.setattr(hooks, "make_hooks", lambda *a: make_hooks(*a) | {"sample": fail})
            train.train(job)
    before = [(each["step"], each["kind"]) for each in read_metrics(tmp_path)]
    third = [(3, "train"), (3, "eval"), (3, "sample"), (4, "train")]
    assert before == [(1, "train"), (2, "train"), *third] + [(4, "eval")] * (cause == "a crash")
    assert checkpoints.list_steps(tmp_path / "checkpoints") == [4]
    assert train.train(job_of(short, tmp_path, before=4)) == 0
    said = capsys.readouterr().out
    last = said.splitlines()[-2:]
    assert "is done" not in said and last[0].startswith("validation NELBO")
    assert last[1] == f"next: python -m mdlm_jax.generate --workdir={tmp_path}"
    kinds = [each["kind"] for each in read_metrics(tmp_path) if each["step"] == 4]
    assert kinds == ["train", "eval", "sample"]
    records = read_metrics(tmp_path)
    assert train.train(job_of(short, tmp_path, before=4)) == 0
    assert "is done: it has 4 of 4 steps" in capsys.readouterr().out
    assert read_metrics(tmp_path) == records


def changed(program, **training):
    settings = program.experiment
    return program._replace(
        experiment=dataclasses.replace(
            settings, training=dataclasses.replace(settings.training, **training)
        )
    )


def claimed(short, folder):
    program, prepared = short
    with workdir.claim(folder, program.experiment, program.encoder, prepared) as claim:
        return claim


def test_only_a_run_that_goes_on_has_other_steps(short, tmp_path):
    """A start that does nothing leaves the config as it was, and tells of no change."""
    program, prepared = short
    prepared = prepared._replace(path=tmp_path)
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "data.json").write_text("{}")
    folder = epath.Path(tmp_path / "run")

    def steps():
        return json.loads((folder / "config.json").read_text())["training"]["steps"]

    def log_every():
        return json.loads((folder / "config.json").read_text())["training"]["log_every"]

    assert claimed((program, prepared), folder).changes == [] and steps() == 4
    assert claimed((changed(program, steps=3), prepared), folder).changes == [] and steps() == 3
    assert claimed((program, prepared), folder).changes == [] and steps() == 4  # nothing was saved
    one = jnp.ones(1)
    state = TrainState(jnp.int32(4), {"a": one}, {"a": one}, {"a": one}, jnp.int32(0))
    with checkpoints.open_checkpoints(folder / "checkpoints") as checkpointer:
        checkpoints.save(checkpointer, state)
    less = changed(program, steps=2, log_every=3)
    before = (folder / "config.json").read_bytes()
    claim = claimed((less, prepared), folder)
    assert claim.changes == ["training.log_every: 1 -> 3"]
    assert (folder / "config.json").read_bytes() == before
    more = changed(program, steps=6, log_every=3)
    claim = claimed((more, prepared), folder)
    words = train._begin(job_of((more, prepared), folder, before=4), 4, claim)
    assert log_every() == 3 and claimed((more, prepared), folder).changes == []
    assert steps() == 6 and "training.steps: 4 -> 6" in words[1]


@pytest.mark.parametrize(
    ("decay", "before", "steps", "told"),
    [
        ("cosine", 100, 200, "at step 99 it was 0.0001, and rises to 0.000595 now; to choose it"),
        ("linear", 200, 100, "at step 99 it was 0.000578, and falls to 0.00011 now"),
        ("constant", 100, 200, None),
        ("cosine", 100, 100, None),
    ],
)
def test_a_learning_rate_that_jumps_is_told(short, tmp_path, decay, before, steps, told):
    program, prepared = short
    optimizer = dataclasses.replace(
        program.experiment.optimizer, decay=decay, learning_rate=1e-3, warmup_steps=10
    )
    longer = changed(program, steps=steps)
    experiment = dataclasses.replace(longer.experiment, optimizer=optimizer)
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "training": {"steps": before}}))
    words = train._begin(
        job_of((longer._replace(experiment=experiment), prepared), tmp_path, before), 99
    )
    said = [line for line in words if "learning rate" in line]
    if told is None:
        assert said == []
    else:
        (line,) = said
        assert told in line
        assert f"--config.start.checkpoint={tmp_path}" in line


def test_the_next_command_asks_a_run_of_pairs_its_first_prompt(tmp_path):
    program, prepared = run_of("pairs")
    command = train._next_command(job_of((program, prepared), tmp_path / "my run"))
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "mdlm_jax.generate"]
    assert words[3] == f"--workdir={tmp_path}/my run"
    prompt = data.decode(TOKENIZER, prepared.splits["validation"].tokens[0, :3])
    assert words[4:] == [f"--prompt={prompt}"] and len(prompt) == 3


def test_a_likelihood_that_is_not_finite_is_told(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(4, "eval", {"nats_per_token": np.nan, "text_error": None})
    assert "likelihood is not finite" in train._last_words(epath.Path(tmp_path))
