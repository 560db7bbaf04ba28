"""The frontier of a tiny encoder with random parameters: what is asked for, measured and shown."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from mdlm_jax import data, strategies
from mdlm_jax.evaluation.samples import frontier, naive_bayes
from mdlm_jax.host import parallel
from mdlm_jax.measuring import points
from mdlm_jax.networks import bert
from mdlm_jax.pages import frontier_table
from mdlm_jax.pages.frontier_plot import frontier_png

MASK, VOCAB, LENGTH, CLASSES = 3, 13, 8, 3
PLAIN = bert.Config(
    vocab_size=VOCAB, mask_id=MASK, max_length=LENGTH, layers=1, width=16, heads=2, mlp_width=16
)
CLASSED = dataclasses.replace(PLAIN, classes=CLASSES, class_dropout=0.1)
MESH = parallel.make_mesh(devices=jax.devices()[:1])
TRAIN = data.Rows(np.array([[9, 0, 1, 0, 1, 9], [4, 5, 6, 7, 8, 9]]), np.zeros(2, np.int32))
NO_DIFFERENCE = frontier.Judges(lambda rows: np.zeros(len(rows)), TRAIN)


def params_of(config):
    """Random parameters, large enough that labels and neighbours tell."""
    shapes = jax.eval_shape(lambda: bert.init(jax.random.key(0), config))
    random = np.random.default_rng(1)

    def draw(path, leaf):
        center = float(path[-1].key == "scale")
        return (center + 0.3 * random.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map_with_path(draw, shapes)


def rows_of(count, sizes=None):
    labels = np.arange(count, dtype=np.int32) % CLASSES
    return data.Rows(np.zeros((count, LENGTH), np.int32), labels, sizes)


def measured(config, grid, reference, *, batch_size=64, strategy=None, classifier=None, **options):
    """The points, and the rows that were written for each."""
    seen = []

    def scorer(rows):
        seen.append(rows)
        return np.zeros(len(rows))

    found = points.measure(
        params_of(config),
        config,
        strategy or {"exact_count": strategies.exact_count()},
        grid,
        reference,
        frontier.Judges(scorer, TRAIN, classifier),
        seed=0,
        batch_size=batch_size,
        mesh=MESH,
        **options,
    )
    return list(found), seen


@pytest.fixture(scope="module")
def guided():
    """Weights 0, 1 and 8, judged by a classifier that was made of rows of weight 1."""
    reference = rows_of(600)
    _, (conditional,) = measured(CLASSED, points.Grid(600, (LENGTH,)), reference)
    grid = points.Grid(600, (LENGTH,), guidance=(0.0, 1.0, 8.0))
    classifier = naive_bayes.fit(conditional, VOCAB, CLASSES)
    return conditional, *measured(CLASSED, grid, reference, classifier=classifier)


@pytest.mark.slow
def test_a_weight_of_one_is_the_conditional_model(guided):
    conditional, _, (_, one, _) = guided
    np.testing.assert_array_equal(one.tokens, conditional.tokens)


def test_guidance_makes_the_class_plainer_and_none_leaves_chance(guided):
    """4 standard errors: a false alarm in 10,000 runs; the seed is fixed."""
    _, points, _ = guided
    none, one, eight = (point["class_accuracy"] for point in points)
    assert abs(none - 1 / CLASSES) < 4 * math.sqrt(1 / CLASSES * (1 - 1 / CLASSES) / 600)
    assert none < one - 0.1 and one < eight - 0.1


def test_a_guided_step_takes_two_evaluations(guided):
    assert [point["evaluations"] for point in guided[1]] == [2 * LENGTH] * 3


def test_every_combination_is_measured_in_one_program_a_strategy():
    traced = []
    plain = strategies.exact_count()

    def init(keys, view):
        traced.append(None)
        return plain.init(keys, view)

    grid = points.Grid(4, (1, 2), temperatures=(1.0, 0.5))
    found = points.measure(
        params_of(PLAIN), PLAIN, {"one": plain._replace(init=init)}, grid, rows_of(4),
        NO_DIFFERENCE, seed=0, batch_size=4, mesh=MESH,
    )  # fmt: skip
    first = next(found)
    compiled = len(traced)
    told = [(p["temperature"], p["steps"], p["guidance"]) for p in (first, *found)]
    assert told == [(1.0, 1, None), (1.0, 2, None), (0.5, 1, None), (0.5, 2, None)]
    assert len(traced) == compiled > 0
    assert first["evaluations"] == 1 and first["seconds"] > 0 and first["rows"] == 4


@pytest.mark.slow
def test_batches_change_no_sample():
    grid = points.Grid(7, (3,))
    _, (whole,) = measured(PLAIN, grid, rows_of(7))
    _, (parts,) = measured(PLAIN, grid, rows_of(7), batch_size=3)
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    assert not (whole.tokens == MASK).any()


def test_no_noise_leaves_one_text():
    grid = points.Grid(32, (1,), temperatures=(0.0, 1.0))
    (greedy, drawn), (rows, _) = measured(PLAIN, grid, rows_of(32))
    assert (rows.tokens == rows.tokens[0]).all()
    assert greedy["entropy"] < drawn["entropy"] and greedy["distinct_2"] < drawn["distinct_2"]


def test_samples_are_of_the_lengths_and_labels_of_the_reference():
    reference = rows_of(3, np.array([2, 8, 5]))
    grid = points.Grid(5, (8,))
    (point,), (rows,) = measured(CLASSED, grid, reference)
    assert rows.sizes.tolist() == [2, 8, 5, 2, 8] and rows.labels.tolist() == [0, 1, 2, 0, 1]
    padding = np.arange(LENGTH) >= rows.sizes[:, None]
    np.testing.assert_array_equal(rows.tokens[padding], 0)  # as in the reference
    assert point["tokens"] == 25 and point["evaluations"] == 5


@pytest.mark.slow
def test_adaptive_strategies_tell_what_they_took():
    strategy = {"threshold(0)": strategies.threshold(0.0), "greedy": strategies.greedy()}
    found, _ = measured(PLAIN, points.Grid(4, (8,)), rows_of(4), strategy=strategy)
    assert [(p["strategy"], p["evaluations"]) for p in found] == [
        ("threshold(0)", 1),
        ("greedy", 8),
    ]


def test_describe_tells_the_metrics_of_rows():
    rows = data.Rows(
        np.array([[0, 1, 0, 1, 0, 1], [2, 4, 5, 6, 9, 9]]), np.zeros(2), np.array([6, 4])
    )
    told = frontier.describe(rows, frontier.Judges(lambda rows: np.array([6.0, 8.0]), TRAIN))
    assert told["rows"] == 2 and told["tokens"] == 10
    assert told["nats"] == pytest.approx(1.4)  # 14 nats of 10 tokens
    assert told["entropy"] == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert told["distinct_1"] == pytest.approx(6 / 10) and told["distinct_3"] == pytest.approx(
        4 / 6
    )
    assert told["repetition"] == pytest.approx((1 / 3 + 0) / 2)
    assert (told["memorised"], told["memorised_longest"]) == (3.5, 4)  # 0 1 0 1, and 4 5 6
    assert "class_accuracy" not in told and "mauve" not in told


def test_mauve_is_asked_of_the_rows_where_an_encoder_reads_them():
    judges = NO_DIFFERENCE._replace(mauve=lambda rows: float(len(rows)))
    assert frontier.describe(rows_of(5), judges)["mauve"] == 5.0


def test_what_is_undefined_is_none():
    row = data.Rows(np.array([[0, 1]]), np.zeros(1))
    told = frontier.describe(row, NO_DIFFERENCE)
    undefined = {name for name, value in told.items() if value is None}
    assert undefined == {
        "nats_error",
        "entropy_error",
        "distinct_3",
        "repetition",
        "memorised_error",
    }


def test_the_reference_is_spread_over_labels_and_rows():
    labels = np.repeat([0, 1, 2], [50, 40, 2]).astype(np.int32)
    split = data.Rows(np.arange(92)[:, None], labels)
    chosen = frontier.reference_rows(split, 12)
    assert np.bincount(chosen.labels).tolist() == [5, 5, 2]
    of_first = chosen.tokens[chosen.labels == 0, 0]
    assert of_first.min() < 10 and of_first.max() >= 30 and np.diff(of_first).max() <= 20
    assert len(frontier.reference_rows(split, 1000)) == 92
    np.testing.assert_array_equal(frontier.reference_rows(split, 92).tokens, split.tokens)
    padded = dataclasses.replace(split, sizes=np.arange(92))
    kept = frontier.reference_rows(padded, 12)
    np.testing.assert_array_equal(kept.sizes, kept.tokens[:, 0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, not 0"),
        ({"steps": ()}, "steps is empty"),
        ({"steps": (4, 0)}, "steps must be at least 1, not 0"),
        ({"temperatures": ()}, "temperatures is empty"),
        ({"temperatures": (1.0, -0.5)}, "temperatures must be 0 or more, not 1, -0.5"),
        ({"temperatures": (math.nan,)}, "temperatures must be 0 or more, not nan"),
        ({"guidance": (1.0, math.inf)}, "guidance must be finite weights, not 1, inf"),
    ],
)
def test_impossible_grids_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        points.Grid(**values)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PLAIN, "guidance is for models with classes"),
        (dataclasses.replace(CLASSED, class_dropout=0.0), "model.class_dropout=0"),
    ],
)
def test_models_that_cannot_be_guided_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        measured(config, points.Grid(1, (1,), guidance=(1.0,)), rows_of(1))


def test_the_table_lines_up(guided):
    _, points, _ = guided
    layout = frontier_table.table(["exact_count"], guided=True, classes=True, mauve=True)
    heads = frontier_table.heads(layout)
    lines = [frontier_table.line(layout, point) for point in points]
    assert {len(each) for each in (heads, *lines)} == {len(heads)}
    assert {"steps", "guidance", "nats", "entropy", "class", "evals"} <= {*heads.split()}
    reference = {name: points[0][name] for name in points[0] if name not in ("strategy", "steps")}
    assert frontier_table.line(layout, reference).startswith("real text")


@pytest.mark.parametrize("count", [1, 3])
def test_the_plot_is_a_picture(guided, count):
    _, points, _ = guided
    png = frontier_png(points[:count], {**points[0], "evaluations": None}, "trigram")
    assert png.startswith(b"\x89PNG") and len(png) > 10_000


@pytest.mark.slow
def test_a_causal_model_writes_behind_its_start_token():
    """The same noise, another token before the row, another text."""
    causal = dataclasses.replace(PLAIN, attention="causal")
    strategy = {"left_to_right": strategies.left_to_right()}
    grid, reference = points.Grid(16, (LENGTH,)), rows_of(16)
    (one, same, other) = (
        measured(causal, grid, reference, strategy=strategy, start_id=start)[1][0].tokens
        for start in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()
