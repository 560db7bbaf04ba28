"""Filling canvases with a network, batch by batch; on eight devices in a process of its own."""

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import compilations
import exported
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import BASE, MASK, params_of

from mdlm_jax.diffusion import as_denoiser, noise, schedules, strategies
from mdlm_jax.host import parallel
from mdlm_jax.runs.families import Cache
from mdlm_jax.runs.sampler import Method, make_writer, written
from mdlm_jax.runs.shaping import Shaping
from mdlm_jax.writing import decoding, filling
from mdlm_jax.writing.canvases import Canvas

ENCODER = dataclasses.replace(BASE, classes=3, vocab_multiple=8)
LENGTH = ENCODER.max_length
END = 5
PLAIN = Method(strategies.exact_count(), Shaping(), steps=4)


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def canvas():
    """A whole row, a prompt with two gaps, a gap that ends before the row does."""
    tokens = np.full((3, LENGTH), MASK, np.int32)
    tokens[1, [0, 3, 4]] = 7, 8, 9
    tokens[2, 0] = 6
    fill = tokens == MASK
    fill[2, 3:] = False
    return Canvas(tokens, fill, fill | (tokens != MASK))


@pytest.fixture(scope="module")
def fill(mesh, canvas):
    def fill(method=PLAIN, canvas=canvas, **options):
        params = jax.device_put(params_of(ENCODER), parallel.replicated(mesh))
        options = {"batch_size": 4, **options}  # few shapes: each is compiled
        batches = filling.fill(params, ENCODER, mesh, method, canvas, **options)
        return [row for batch in batches for row in batch]

    return fill


def tokens_of(rows):
    return np.stack([row.tokens for row in rows])


def test_gaps_are_filled_and_all_else_is_kept(fill, canvas):
    rows = fill(samples=2)
    assert [row.number for row in rows] == list(range(6))
    for row in rows:
        before, wanted = canvas.tokens[row.number // 2], canvas.fill[row.number // 2]
        np.testing.assert_array_equal(row.tokens[~wanted], before[~wanted])
        assert np.all(row.tokens[wanted] != MASK) and np.all(row.tokens < ENCODER.vocab_size)
        assert np.all(row.step[wanted] >= 0) and np.all(row.step[~wanted] == -1)
        assert np.all(row.log_prob[wanted] < 0) and np.all(row.log_prob[~wanted] == 0)
        assert row.evaluations == min(PLAIN.steps, wanted.sum())
    assert np.any(rows[0].tokens != rows[1].tokens)


def test_a_sample_depends_on_its_number_alone(fill):
    whole = tokens_of(fill(samples=3, batch_size=16))
    np.testing.assert_array_equal(tokens_of(fill(samples=3, first=2)), whole[2:])
    assert fill(samples=3, first=9) == []
    other = tokens_of(fill(samples=3, seed=2**32))
    assert np.any(other != whole)
    key = noise.derive(noise.seed_key(2**32), "samples")
    np.testing.assert_array_equal(tokens_of(fill(samples=3, key=key)), other)


def test_a_batch_never_holds_more_rows_than_asked_for(mesh, canvas):
    params = jax.device_put(params_of(ENCODER), parallel.replicated(mesh))
    batches = filling.fill(params, ENCODER, mesh, PLAIN, canvas, samples=2, batch_size=4)
    assert [len(batch) for batch in batches] == [4, 2]


def test_no_batch_is_larger_than_what_is_left_to_do(fill, monkeypatch):
    sizes, real = [], parallel.put_rows

    def put(batch, mesh):
        sizes.append(len(batch["number"]))
        return real(batch, mesh)

    monkeypatch.setattr(parallel, "put_rows", put)
    assert len(fill(samples=3, first=5, batch_size=16)) == sum(sizes) == 4


def batch_of(canvas, mesh, label):
    rows = len(canvas.tokens)
    batch = {
        "tokens": canvas.tokens,
        "fill": canvas.fill,
        "number": np.arange(rows, dtype=np.int32),
        "label": np.full(rows, label, np.int32),
    }
    return parallel.put_batch(batch, mesh, rows)


def test_guidance_weighs_the_label(mesh, canvas):
    params = jax.device_put(params_of(ENCODER), parallel.replicated(mesh))
    write = make_writer(ENCODER, mesh, PLAIN)
    guide = make_writer(ENCODER, mesh, dataclasses.replace(PLAIN, guidance=1.0))
    four = Canvas(*(leaf[[0, 1, 2, 0]] for leaf in canvas[:3]))

    def written(writer, label, **strengths):
        batch = batch_of(four, mesh, label)
        strengths = {"temperature": 1.0, **strengths}
        return np.asarray(writer(params, jax.random.key(0), batch, 4, strengths)[0])

    plain, labelled = written(write, -1), written(write, 2)
    assert np.any(plain != labelled)
    np.testing.assert_array_equal(written(guide, 2, guidance=1.0), labelled)
    np.testing.assert_array_equal(written(guide, 2, guidance=0.0), plain)
    assert np.any(written(guide, 2, guidance=4.0) != labelled)


@pytest.mark.slow
def test_a_cache_that_is_refreshed_in_every_step_changes_nothing(fill):
    method = dataclasses.replace(PLAIN, blocks=2, steps=4)
    plain = tokens_of(fill(method, samples=4))

    def cached(refresh, **shaping):
        shaping = dataclasses.replace(PLAIN.shaping, **shaping)
        cache = Cache("dual", 4, refresh)
        return dataclasses.replace(method, cache=cache, shaping=shaping)

    np.testing.assert_array_equal(tokens_of(fill(cached(1), samples=4)), plain)
    # Another period is something else by the same program.
    exact = [row.log_prob for row in fill(cached(1), samples=4)]
    with compilations.counted() as compiled:
        other = [row.log_prob for row in fill(cached(9), samples=4)]
    assert not compiled and np.abs(np.subtract(other, exact)).max() > 1e-3
    greedy = dataclasses.replace(
        method, shaping=dataclasses.replace(PLAIN.shaping, temperature=0.0)
    )
    np.testing.assert_array_equal(
        tokens_of(fill(cached(1, temperature=0.0), samples=4)), tokens_of(fill(greedy, samples=4))
    )


def test_a_text_ends_where_the_model_ends_it(fill):
    blank = Canvas(*(np.full((40, LENGTH), value) for value in (np.int32(MASK), True, True)))
    method = dataclasses.replace(PLAIN, steps=LENGTH, blocks=4, end_id=END, pad_id=1)
    rows = fill(method, blank, batch_size=40)
    ended = [row for row in rows if END in row.tokens]
    assert ended  # of 320 tokens; by chance none with probability below 1e-5
    for row in rows:
        end = list(row.tokens).index(END) if END in row.tokens else LENGTH - 1
        assert np.all(row.step[: end + 1] >= 0) and np.all(row.step[end + 1 :] == -1)
        assert np.all(row.tokens[end + 1 :] == 1)
        # Two tokens a block, one a step: blocks behind the end cost nothing.
        assert row.evaluations == 2 * (end // 2 + 1)


def test_what_was_compiled_serves_every_method_of_the_same_program(fill, canvas):
    """Others in steps, strengths, seed and number of rows; built anew, as each call builds them."""

    def method(steps, **values):
        schedule = schedules.cosine()
        shaping = Shaping(top_p=values.pop("top_p", 0.9), top_k=5, temperature=0.5)
        strategy = decoding.strategy("exact_count(grid=cosine)", schedule)
        return Method(strategy, shaping, steps, guidance=values.pop("guidance", 2.0))

    with compilations.counted() as compiled:
        first = tokens_of(fill(method(4), labels=np.zeros(3, np.int32)))
    assert compiled
    with compilations.counted() as compiled:
        again = fill(method(4), labels=np.zeros(3, np.int32))
        others = fill(method(1, top_p=0.5, guidance=0.0), samples=3, batch_size=4, seed=1)
    assert not compiled
    np.testing.assert_array_equal(tokens_of(again), first)
    assert len(others) == 9 and others[0].evaluations == 1
    strong = {"samples": 2, "batch_size": 4}
    mixed = tokens_of(fill(method(8, guidance=6.0), labels=np.array([0, 0, 2]), **strong))
    alike = tokens_of(fill(method(8, guidance=6.0), labels=np.zeros(3, np.int32), **strong))
    np.testing.assert_array_equal(mixed[:4], alike[:4])
    assert np.any(mixed[4:] != alike[4:])


def test_padding_is_not_seen(fill):
    """Whatever stands there changes nothing, and is kept; as text it would change what is drawn."""
    tokens = np.full((4, LENGTH), MASK, np.int32)
    tokens[:, LENGTH - 3 :] = [[1], [9], [MASK], [1]]
    valid = np.broadcast_to(np.arange(LENGTH) < LENGTH - 3, tokens.shape)

    def written(tokens, valid):
        rows = fill(PLAIN, Canvas(tokens, valid, valid, valid))
        return tokens_of(rows), np.stack([row.log_prob for row in rows])

    padded, log_prob = written(tokens, valid)
    np.testing.assert_array_equal(padded[:, LENGTH - 3 :], tokens[:, LENGTH - 3 :])
    assert np.all(padded[:, : LENGTH - 3] != MASK)
    others = written(np.where(valid, tokens, 7), valid)
    np.testing.assert_array_equal(others[0][valid], padded[valid])
    np.testing.assert_array_equal(others[1], log_prob)
    seen = written(tokens, np.ones_like(valid))[1]
    assert not np.allclose(seen[valid], log_prob[valid], rtol=1e-3)


@pytest.mark.parametrize(("share", "told"), [(1.0, 10), (0.5, 5)])
def test_the_time_is_of_what_training_masks(share, told):
    """Of a denoiser that writes the time that it is told, in tenths."""
    tokens = jnp.array([[20] * 4 + [MASK] * 4])
    wanted = tokens == MASK

    def logits(tokens, t):
        time = jax.nn.one_hot(jnp.round(10 * t).astype(int), 30)  # [B, V]
        return jnp.broadcast_to(1e3 * time[:, None], (*tokens.shape, 30))

    batch = {"tokens": tokens, "fill": wanted, "number": jnp.arange(1)}
    batch |= {"maskable": wanted} if share == 1 else {}
    denoiser = as_denoiser(logits, MASK)
    write = jax.jit(partial(written, denoiser, mask_id=MASK, steps=1, method=PLAIN))
    filled, trace = write(key=jax.random.key(0), batch=batch)
    assert filled.tolist() == [[20] * 4 + [told] * 4] and trace.evaluations.tolist() == [1]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3, "blocks": 4}, "steps is 3, blocks 4: each block needs a step"),
        ({"guidance": float("nan")}, "guidance is nan, it must be a finite number"),
    ],
)
def test_a_method_that_is_none_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **values)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("fdsp=2", "mesh 'fdsp=2': it must be sizes of data, fsdp, tensor"),
        ("fsdp", "such as fsdp=4,tensor=2"),
        ("", "mesh ''"),
        ("data=1,data=1", "it must be sizes"),
        ("tensor=1.5", "it must be sizes"),
        ("data=1,tensor=two", "it must be sizes"),
        ("fsdp=7,tensor=9", "fsdp=7, tensor=9: .* devices cannot be arranged so"),
    ],
)
def test_a_mesh_that_is_none_is_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        filling.make_mesh(sizes)


def test_a_mesh_may_have_every_axis_and_a_block_one_step():
    mesh = filling.make_mesh("data=1, fsdp=1, tensor=-1")
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": jax.device_count()}
    assert dataclasses.replace(PLAIN, steps=4, blocks=4).blocks == 4


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    folder = exported.write(tmp_path_factory.mktemp("mesh") / "model", classes=2)
    script = Path(__file__).parents[1] / "filling_on_eight_devices.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "nvoluntary full rematerialization" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_no_mesh_changes_a_sample(on_eight_devices):
    one = on_eight_devices.pop("one device")
    assert one["numbers"] == list(range(9))
    for name, told in on_eight_devices.items():
        for what in ("numbers", "tokens", "evaluations"):
            assert told[what] == one[what], (name, what)
    assert on_eight_devices["data=8"]["held"] == 1
    cube = on_eight_devices["fsdp=2,tensor=2"]
    assert cube["held"] == 1 / 4 and cube["vocabulary"] == one["vocabulary"] + 1
