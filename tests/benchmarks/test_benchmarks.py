"""The benchmarks at a tiny shape: what their lines hold, and that they count right."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.tiny import params_of

from benchmarks import (
    attention,
    attention_masks,
    block_sampling,
    block_training,
    building,
    caches,
    checks,
    loop,
    measure,
    memory,
    plain,
    sample,
    shapes,
    stream_attention,
)
from benchmarks import train_step as command
from mdlm_jax.diffusion.sampling import Trace
from mdlm_jax.networks import bert

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Of the shape `tiny`: 2 layers of width 32, MLPs of 64, 300 tokens, 4 rows of 16.
LAYER = 2 * (4 * 32**2 + 2 * 32 * 64)  # a token
ATTENDED = 4 * 16 * 32  # a token and layer
FORWARD = 2 * 64 * (LAYER + ATTENDED)
LATE = 2 * 2 * 32 * 64  # the last block's MLP, a position that is read out
ENCODED = FORWARD - 64 * LATE
READ = LATE + 2 * (32**2 + 32 * 300)


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def check_line(line):
    assert 0 < line["ms_lowest"] <= line["ms"] <= line["ms_highest"]
    assert line["tflops"] == pytest.approx(line["flops"] / line["ms"] / 1e9, rel=1e-2)
    assert line["share_of_ceiling"] == pytest.approx(
        line["tflops"] / line["ceiling_tflops"], rel=1e-2
    )
    assert line["peak_bytes"] > 0 and line["compile_seconds"] > 0
    assert line["device"] == "cpu" and line["versions"]["jax"] == jax.__version__


def test_train_step_tells_the_product_and_the_plain_step(capsys):
    assert command.main(["--shape=tiny", "--plain", "--steps=2"]) == 0
    product, written_out = lines(capsys)
    for line in (product, written_out):
        check_line(line)
        assert line["tokens_per_second"] == pytest.approx(64e3 / line["ms"], rel=1e-2)
        assert abs(line["loss"] - math.log(299)) < 1
    # A pair of rows shares 17 slots.
    assert product["flops"] == 3 * (ENCODED + 2 * 17 * READ)
    assert written_out["flops"] == 3 * (ENCODED + 64 * READ)


def test_the_plain_encoder_is_the_library_s():
    shape = shapes.shape("quickstart", rows=2, length=24)
    config = shape.encoder
    params = params_of(config, noise=0.05)
    tokens = jnp.asarray(building.random_tokens(0, shape))

    @jax.jit
    def both(params):
        theirs = plain.Encoder(config).apply({"params": plain.params_of(params, config)}, tokens)
        return theirs, bert.logits(params, config, tokens)

    theirs, ours = both(params)
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * float(jnp.abs(ours).max()))


@pytest.mark.slow
def test_the_fast_paths_are_right_and_a_wrong_one_is_found(capsys, monkeypatch):
    assert checks.run_all("xla")
    told = lines(capsys)
    assert [(line["of"], line["part"]) for line in told] == [
        (of, part) for of in ("loss", "attention, xla") for part in ("values", "gradients")
    ]
    assert all(0 < line["difference"] <= line["tolerance"] for line in told)

    right = checks.attention
    monkeypatch.setattr(
        checks,
        "attention",
        lambda q, *args, **kwargs: right(
            q * (1 if q.dtype == jnp.float32 else 1.2), *args, **kwargs
        ),
    )
    assert not checks.run_all("xla", lengths=(33,))


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_one_wrong_comparison_fails_the_check(wrong, capsys, monkeypatch):
    def told(*differences):
        same = {"of": "loss", "part": "values", "tolerance": 0.1}
        return [{**same, "difference": difference} for difference in differences]

    monkeypatch.setattr(checks, "loss_differences", lambda: told(0.01, wrong, 0.02))
    monkeypatch.setattr(checks, "attention_differences", lambda *_: [])
    assert not checks.run_all("xla")
    (line,) = lines(capsys)
    assert not line["passed"] and line["comparisons"] == 3


def test_what_is_not_a_number_is_different():
    assert not checks.difference(jnp.asarray([jnp.nan, 1]), jnp.ones(2)) <= 1e9


def test_attention_tells_each_pass(capsys):
    assert attention.main(["--lengths=8", "--tokens=32", "--heads=2", "--head_dim=4"]) == 0
    forward, both = lines(capsys)
    for line in (forward, both):
        check_line(line)
    assert (forward["part"], both["part"]) == ("forward", "both")
    assert forward["flops"] == 2 * 2 * 4 * 2 * 8 * 8 * 4  # two products, 4 rows, 2 heads
    assert both["flops"] == 3 * forward["flops"]


def test_stream_attention_tells_times_and_differences(capsys):
    flags = ["--rows=1", "--length=32", "--block_size=4", "--heads=1", "--head_dim=16"]
    assert stream_attention.main([*flags, "--seconds=0"]) == 0
    *told, forward, both = lines(capsys)
    ways, differences, kernels = told[:6], told[6:9], told[9:]
    for line in (*ways, forward, both):
        check_line(line)
        passes = 1 if line["part"] == "forward" else 3
        assert line["flops"] == passes * 2 * 2 * 32 * 32 * 16  # two products of L^2 pairs
    assert [line["way"] for line in ways] == [
        *("kernels", "kernels", "groups", "groups", "full", "full"),
    ]
    assert [line["padded"] for line in differences] == [False, True, True]
    for line in differences:
        for name in ("out", "q", "k", "v"):
            assert 0 < line[f"kernels_{name}"] < 0.05
            assert 0 < line[f"groups_{name}"] < 0.05
    assert [line["kernel"] for line in kernels] == ["forward", "of_queries", "of_keys"]
    assert list(both["tiles"]) == ["forward", "of_queries", "of_keys"]


def test_attention_masks_tells_each_way_and_a_table(capsys, monkeypatch):
    two = list(attention_masks.cases("xla", 4))[:2]  # to compile the others takes long
    monkeypatch.setattr(attention_masks, "cases", lambda *_: two)
    flags = ["--shapes", "2x4", "3x8", "--window=4", "--heads=1", "--head_dim=8"]
    assert attention_masks.main([*flags, "--backend=xla"]) == 0
    told = capsys.readouterr().out.splitlines()
    names = [case.name for case in two]
    found = [json.loads(line) for line in told[: 2 * len(names)]]
    assert [(line["case"], line["length"]) for line in found] == [
        (name, length) for length in (4, 8) for name in names
    ]
    head, _, *rows = told[2 * len(names) :]
    assert head == "| ms | 2 x 4 | 3 x 8 |"
    for row, first, second in zip(rows, found, found[len(names) :], strict=False):
        assert row == f"| {first['case']} | {first['ms']:.2f} | {second['ms']:.2f} |"
    assert len(rows) == len(names)


def test_the_ways_to_compute_padding_and_windows_are_two():
    """Where a query is real, each agrees with one of two matrices: full, or under the window."""
    lengths = jnp.asarray([20, 80], jnp.int32)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 80, 1, 8))
    real = jnp.arange(80) < lengths[:, None]
    cases = list(attention_masks.cases("xla", 4))
    found = jax.jit(lambda *args: [case.program(*args) for case in cases])(lengths, q, k, v)
    for case, got in zip(cases, found, strict=True):
        near = "window" in case.name and "lifted" not in case.name
        seen = checks.attention_mask(
            "local" if near else "full", 80, window=4, valid=real if case.padded else None
        )
        expected = jax.nn.dot_product_attention(q, k, v, mask=seen)
        at = real if case.padded else jnp.ones_like(real)
        np.testing.assert_allclose(got[at], expected[at], atol=1e-5, err_msg=case.name)


def test_sample_tells_the_forward_pass_and_each_strategy(capsys):
    spec = "confidence(margin, grid=uniform)"
    assert sample.main(["--shape=tiny", "--steps=4", "--strategies", "exact_count", spec]) == 0
    bare, *runs = lines(capsys)
    for line in (bare, *runs):
        check_line(line)
    assert bare["flops"] == FORWARD
    for line, read_out in zip(runs, (64, 4 * (16 + 12 + 8 + 4)), strict=True):
        assert line["evaluations"] == 4
        assert line["ms_an_evaluation"] == pytest.approx(line["ms"] / 4, rel=1e-2)
        assert line["flops"] == 4 * ENCODED + read_out * READ


def test_steps_that_ask_for_nothing_are_not_counted():
    shape = shapes.shape("tiny", rows=2, length=3)
    trace = Trace(np.array([[0, 5, 5], [5, 0, 9]]), np.zeros((2, 3)), np.array([2, 3]))
    assert sample.asked(trace) == 3
    one_by_one = sample.counted(shape, trace, "exact_count")
    until_written = sample.counted(shape, trace, "threshold")
    assert until_written - one_by_one == pytest.approx((1 + 2 + 2 + 2 + 1 + 3 - 6) * READ)
    assert sample.counted(shape, trace, "remask") is None


def test_caches_tells_each_kind_and_how_often_it_looks(capsys):
    flags = ["--shape=tiny", "--prompt=4", "--blocks=3", "--steps=6", "--kinds", "dual"]
    assert caches.main([*flags, "--refresh", "1", "2"]) == 0
    told = lines(capsys)
    assert all(each["ms"] > 0 and each["evaluations"] == 6 for each in told)
    assert [(each["cache"], each["refresh"], each["looks"]) for each in told] == [
        ("none", 1, 6), ("dual", 1, 6), ("dual", 2, 3),
    ]  # fmt: skip


def test_a_cache_costs_nothing_in_the_steps_that_look():
    shape = shapes.shape("tiny")
    params = jax.tree.map(
        lambda x: x + jax.random.normal(jax.random.key(0), x.shape) / 10,
        bert.init(jax.random.key(1), shape.encoder),
    )
    plan = caches.Plan(shape.length, prompt=4, blocks=3, steps=4, around=2)
    text = jax.random.randint(jax.random.key(2), (shape.rows, shape.length), 0, 299)
    exact, always, once = (
        caches.cross_entropy(params, shape, plan, text, *case)
        for case in (("none", 1), ("vicinity", 1), ("vicinity", 4))
    )
    assert exact.shape == (shape.rows, plan.blocks, plan.steps)
    np.testing.assert_allclose(always, exact, atol=1e-4)
    np.testing.assert_allclose(once[..., 0], exact[..., 0], atol=1e-4)
    assert np.abs(once[..., 1:] - exact[..., 1:]).max() > 1e-3
    gaps = caches._gaps(plan, once, exact)
    assert list(gaps["gap"]) == ["1", "0.75", "0.5", "0.25"]
    assert gaps["gap"]["0.5"] == pytest.approx((once - exact)[..., 2].mean(), rel=1e-3)


def test_memory_tells_the_choice_and_counts_what_it_computes_again(capsys):
    arguments = ["--shape=tiny", "--steps=1", "--remats", "full", "--scans", "yes"]
    assert memory.main([*arguments, "--logits", "2000"]) == 0
    (line,) = lines(capsys)
    assert (line["remat"], line["scan"], line["logits_at_a_time"]) == ("full", True, 2000)
    assert line["fits"] and 0 < line["ms_lowest"] <= line["ms"] and line["peak_bytes"] > 0
    assert line["flops"] == 4 * ENCODED + 3 * 2 * 17 * READ


@pytest.mark.slow
def test_loop_tells_the_step_and_the_run_that_takes_it(capfd):
    assert loop.main(["--shape=tiny", "--rows=2", "--steps=20"]) == 0
    step, run = (json.loads(line) for line in capfd.readouterr().out.splitlines())
    check_line(step)
    assert (step["figure"], run["figure"]) == ("train_step", "loop")
    assert step["rows"] == run["rows"] == 2 and run["flops"] == step["flops"]
    assert run["times_step"] == pytest.approx(run["ms"] / step["ms"], rel=1e-2)
    assert run["tokens_per_second"] == pytest.approx(32e3 / run["ms"], rel=1e-2)


def test_repetitions_leave_the_first_out(monkeypatch):
    clock = iter([0, 100, 200, 201, 300, 303, 400, 402])  # a beginning and an end of each
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    times = measure.repeated(lambda: None, calls=2)
    assert times == measure.Times(median=1000, lowest=500, highest=1500)


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (command.main, ["--shape=huge"], "invalid choice: 'huge'"),
        (command.main, ["--shape=tiny", "--rows=3"], "--rows=3: must be even and at least 2"),
        (command.main, ["--shape=tiny", "--remat=some"], "--remat='some': must be one of"),
        (command.main, ["--shape=tiny", "--steps=0"], "--steps=0: must be at least 1"),
        (memory.main, ["--shape=tiny", "--remat=full"], "take --remats"),
        (sample.main, ["--shape=tiny", "--strategies", "luck"], "strategy 'luck' must be one of"),
        (caches.main, ["--shape=tiny", "--blocks=3"], "--prompt=8 of 16: 3 blocks must divide the"),
        (caches.main, ["--shape=tiny", "--refresh", "0"], "--refresh=0: must be at least 1"),
        (loop.main, ["--steps=5"], "--steps=5: must be at least 20"),
        (loop.main, ["--shape=tiny", "--rows=3"], "--rows=3: must be even and at least 2"),
        (attention.main, ["--tokens=64"], "--tokens=64: must hold a row of 4096"),
        (attention_masks.main, ["--shapes", "8by3"], "'8by3': must be rows x length, such as"),
        (attention_masks.main, ["--window=0"], "--window=0: must be at least 1"),
        (stream_attention.main, ["--block_size=3"], "--block_size=3: must divide the length of"),
        (stream_attention.main, ["--head_dim=48"], "--head_dim=48: the kernels do not take heads"),
    ],
)
def test_bad_flags_are_one_line(main, arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_logits_at_a_time_are_set_back():
    before = building.slot_losses._LOGITS
    with building.logits_at_a_time(7):
        assert building.slot_losses._LOGITS == 7
    with building.logits_at_a_time(None):
        assert before == building.slot_losses._LOGITS
    assert before == building.slot_losses._LOGITS


def test_nothing_but_jax_flax_and_optax_is_needed():
    told = subprocess.run(
        [sys.executable, ROOT / "tests" / "benchmarks" / "bare_image.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout == "all imported\n", told.stderr


def test_block_training_tells_blocks_beside_full_diffusion(capsys):
    assert block_training.main(["--shape=tiny", "--block_size=4", "--steps=2"]) == 0
    told = lines(capsys)
    for line in told:
        check_line(line)
        assert abs(line["loss"] - math.log(299)) < 1
    full, block, causal, again = told
    assert [line["objective"] for line in told] == ["full", "block", "causal", "full again"]
    assert full["flops"] == again["flops"] == 3 * (ENCODED + 2 * 17 * READ)
    # 12 clean tokens of a row beside the noisy ones, 5 slots of each pair of blocks.
    late = 4 * 12 * (2 * LAYER - LATE)
    assert block["flops"] == 3 * (ENCODED + late + 4 * 2 * 5 * READ)
    assert causal["flops"] < 3 * (ENCODED + 64 * READ)
    assert full["times_full"] + again["times_full"] == pytest.approx(2, rel=1e-2)
    assert block["times_full"] == pytest.approx(
        2 * block["ms"] / (full["ms"] + again["ms"]), rel=1e-2
    )
    assert block["flops_of_full"] == pytest.approx(block["flops"] / full["flops"], rel=1e-3)


def test_block_sampling_tells_each_writer(capsys):
    flags = ["--shape=tiny", "--block_size=4", "--batches", "2", "--tokens_a_step", "1", "2"]
    assert block_sampling.main(flags) == 0
    told = lines(capsys)
    names = [(line["writer"], line["tokens_a_step"]) for line in told]
    of_steps = [(writer, each) for writer in ("canvas", "block") for each in (1, 2)]
    causal = [(writer, 1) for writer in ("causal", "causal_rows", "causal_canvas")]
    assert names == of_steps + causal
    speeds = dict(zip(names, (line["tokens_per_second"] for line in told), strict=True))
    for line in told:
        assert line["tokens_per_second"] == pytest.approx(32e3 / line["ms"], rel=1e-2)
        canvas = speeds["canvas", line["tokens_a_step"]]
        assert line["times_canvas"] == pytest.approx(line["tokens_per_second"] / canvas, rel=1e-2)


def test_block_sampling_tells_what_a_room_costs(capsys):
    flags = ["--shape=tiny", "--block_size=4", "--batches", "2", "--context=8", "--rooms"]
    assert block_sampling.main([*flags, "8", "32"]) == 0
    told = [[line[name] for name in ("room", "window", "written")] for line in lines(capsys)]
    assert told == [[8, None, 8], [8, 8, 8], [32, None, 8], [32, 8, 32]]


def test_block_sampling_tells_what_a_prompt_costs(capsys):
    flags = ["--shape=tiny", "--block_size=4", "--batches", "2", "--prompts", "5", "12"]
    assert block_sampling.main(flags) == 0
    told = [[line[name] for name in ("writer", "ahead", "prompt")] for line in lines(capsys)]
    ways = [(writer, ahead) for writer in ("block", "causal") for ahead in (True, False)]
    assert told == [[*way, prompt] for way in ways for prompt in (5, 12)]


@pytest.mark.parametrize(
    ("command", "flags", "told"),
    [
        (block_training, ["--block_size=3"], "--block_size=3: must divide the length of 16"),
        (block_training, ["--steps=1"], "--steps=1: must be at least 2"),
        (block_sampling, ["--block_size=5"], "--block_size=5: must divide the length of 16"),
        (block_sampling, ["--block_size=4", "--tokens_a_step=3"], "--tokens_a_step=3: must divide"),
        (block_sampling, ["--context=16"], "--context and --rooms: give both or neither"),
        (block_sampling, ["--context=16", "--rooms=8"], "--rooms=8: must be at least --context=16"),
        (block_sampling, ["--context=8", "--rooms=8"], "--context=8: must be a multiple of"),
        (block_sampling, ["--prompts=16"], "--prompts: must be from 1 to 15"),
    ],
)
def test_what_blocks_cannot_be_timed_with_is_refused(command, flags, told, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--shape=tiny", *flags])
    assert ended.value.code == 2 and told in capsys.readouterr().err
