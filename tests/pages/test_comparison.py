"""The page that compares runs: what it sets side by side, and what it warns of."""

import re

import pytest
from pages import CONFIG, EVALUATION, FILLED, FREE, Page, canvases, rows, visible, write_run

from mdlm_jax.pages.comparison import write_comparison

TEST = {**EVALUATION, "split": "test"}
TRAINED = [
    (250, "eval", {"nats_per_token": 6.5}),
    (250, "train", {"loss": 6.0, "tokens_per_second": 32.0, "host_memory_bytes": 2**30}),
    (500, "eval", {"nats_per_token": 6.0}),
    (500, "train", {"loss": 6.0, "tokens_per_second": 32.0, "host_memory_bytes": 2**31}),
]


def changed(config, fingerprint="same", **sections):
    merged = {key: {**config.get(key, {}), **values} for key, values in sections.items()}
    return {**config, **merged, "data_fingerprint": fingerprint}


def compare(folder, **runs):
    folders = [write_run(folder / name, **files) for name, files in runs.items()]
    path = write_comparison(folders, folder / "page.html")
    assert path == folder / "page.html"
    assert not list(folder.glob("*.tmp"))
    return Page(path.read_text(encoding="utf-8"))


def warnings(page):
    found = re.findall(r'<p class="warning">(.*?)</p>', page.text, flags=re.DOTALL)
    return [re.sub(r"\s+", " ", each) for each in found]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    other = {**TEST, "nats_per_token": 5.5, "mc_error": None}
    return compare(
        tmp_path_factory.mktemp("runs"),
        **{"small<b>": {
            "config": changed(CONFIG),
            "records": TRAINED,
            "evaluation_test": TEST,
            "evaluation_validation": EVALUATION,
            "samples": [FILLED, FREE],
        }},
        large={
            "config": changed(CONFIG, model={"layers": 3}, training={"batch_size": 8}),
            "records": TRAINED,
            "evaluation_test": other,
            "samples": [FREE, {**FREE, "steps": 8}],
        },
    )  # fmt: skip


def test_the_page_stands_alone_and_is_well_formed(page):
    page.assert_loads_nothing()
    assert page.open == []
    assert page.headings == [
        *("2 runs compared", "Validation NELBO over steps", "Validation NELBO over tokens"),
        *("A masked token, by mask rate", "Figures", "Configuration: what differs", "Samples"),
        *("small<b>", "large"),
    ]
    assert "<b>" not in re.sub(r"<b></b>", "", page.text.split("</style>")[1].split("<ul")[0])


def test_likelihoods_stand_side_by_side_with_their_errors(page):
    table = rows(page.text)
    assert table["split"] == ["test", "test"]
    assert table["NELBO, nats/token"] == ["5.912", "5.500"]
    assert table["± masks"] == ["0.011", "–"]
    assert table["± text"] == ["0.023", "0.023"]
    assert "bits/character" not in table  # no card tells
    assert warnings(page) == []


def test_training_is_told(page):
    table = rows(page.text)
    assert table["tokens trained on"] == ["16.0 k", "32.0 k"]
    assert table["training time"] == ["8.3 minutes", "16.7 minutes"]
    assert table["tokens/s"] == ["32", "32"]
    assert table["peak host memory"] == ["2.0 GiB", "2.0 GiB"]
    assert "peak device memory" not in table
    small, large = (int(each.replace(",", "")) for each in table["parameters"])
    per_layer = large - small  # at width 16: 4 of 16 x 16, 2 MLP matrices, and biases and norms
    assert per_layer > 4 * 16 * 16


def test_only_what_differs_of_the_configuration_is_shown(page):
    table = rows(page.text)
    assert table["model.layers"] == ["2", "3"]
    assert table["training.batch_size"] == ["4", "8"]
    assert not {"seed", "model.width", "data.length", "data_fingerprint"} & set(table)


def test_a_sample_of_each_run_is_shown_of_the_same_prompt_with_the_most_steps(page):
    assert canvases(page.text) == [FREE["text"]] * 2
    assert re.findall(r'data-steps="(\d+)"', page.text) == ["4", "8"]


def test_figures_have_a_line_a_run_in_its_own_colour(page):
    over_steps, over_tokens, rates = re.findall(r"<svg.*?</svg>", page.text, flags=re.DOTALL)
    for svg in (over_steps, over_tokens, rates):
        assert "var(--run0)" in svg and "var(--run1)" in svg and "var(--run2)" not in svg
        assert "nats per" in svg
    assert page.text.count('class="swatch"') == 2


def test_other_tokens_are_warned_of_and_compared_by_characters(tmp_path):
    """By the figures that were written: a page that counts again has others."""

    def run(fingerprint, bits):
        records = [
            (step, kind, {**values, "bits_per_character": bits} if kind == "eval" else values)
            for step, kind, values in TRAINED
        ]
        test = {**TEST, "bits_per_character": bits}
        config = changed(CONFIG, fingerprint)
        return {"config": config, "records": records, "evaluation_test": test}

    page = compare(tmp_path, a=run("one", 2.125), b=run("two", 3.157))
    (warning,) = warnings(page)
    assert "not comparable" in warning and "Compare bits per character" in warning
    assert rows(page.text)["bits/character"] == ["2.125", "3.157"]
    assert rows(page.text)["data_fingerprint"] == ["one", "two"]
    over_steps, over_tokens, rates = re.findall(r"<svg.*?</svg>", page.text, flags=re.DOTALL)
    assert (
        ">bits per character</text>" in over_steps and ">bits per character</text>" in over_tokens
    )
    assert ">nats per masked token</text>" in rates


def test_records_without_characters_are_compared_by_tokens(tmp_path):
    base = {"records": TRAINED, "evaluation_test": TEST}
    page = compare(
        tmp_path,
        a={"config": changed(CONFIG, "one"), **base},
        b={"config": changed(CONFIG, "two"), **base},
    )
    assert "bits/character" not in rows(page.text)
    assert ">nats per token</text>" in page.text and ">bits per character</text>" not in page.text


def test_the_same_split_is_compared_where_all_have_it(tmp_path):
    config = changed(CONFIG)
    page = compare(
        tmp_path,
        a={"config": config, "evaluation_validation": EVALUATION, "evaluation_test": TEST},
        b={"config": config, "evaluation_validation": {**EVALUATION, "nats_per_token": 4.0}},
    )
    assert rows(page.text)["split"] == ["validation", "validation"]
    assert warnings(page) == []


def test_other_splits_and_missing_evaluations_are_warned_of(tmp_path):
    config = changed(CONFIG)
    page = compare(
        tmp_path,
        a={"config": config, "evaluation_validation": EVALUATION},
        b={"config": config, "evaluation_test": TEST},
        c={"config": config},
    )
    missing, splits = warnings(page)
    assert missing.startswith("Not evaluated: c (python -m mdlm_jax.evaluate")
    assert "a: validation, b: test" in splits and "not comparable" in splits
    assert rows(page.text)["NELBO, nats/token"] == ["5.912", "5.912", "–"]


def test_runs_that_left_nothing_but_a_configuration_make_a_page(tmp_path):
    page = compare(tmp_path, a={"config": {}}, b={"config": {}})
    assert page.open == [] and "svg" not in page.tags
    assert "The same in all runs." in visible(page.text)


def test_more_runs_than_colours_are_told_apart_by_dashes(tmp_path):
    page = compare(
        tmp_path, **{f"run{i}": {"config": changed(CONFIG), "records": TRAINED} for i in range(10)}
    )
    swatches = re.findall(r'class="swatch" style="(.*?)"', page.text)
    assert len(set(swatches)) == 10


def test_folders_of_one_name_are_called_by_their_parents(tmp_path):
    folders = [write_run(tmp_path / each / "run", config={}) for each in ("a", "b")]
    page = write_comparison(folders, tmp_path / "page.html").read_text()
    assert "a/run, b/run" in page


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["run", "empty"], r"empty is not the folder of a run: it has no config\.json"),
        (["run", "none"], r"none is not the folder of a run"),
        (["run", "../{name}/run"], "run is given twice"),
        (["run"], "at least two runs, not 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, folders, message):
    write_run(tmp_path / "run", config={})
    (tmp_path / "empty").mkdir()
    given = [tmp_path / each.format(name=tmp_path.name) for each in folders]
    with pytest.raises(ValueError, match=message) as error:
        write_comparison(given, tmp_path / "page.html")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("page*"))


def test_an_autoregressive_run_is_a_level_line_and_no_bound(tmp_path):
    exact = {key: value for key, value in TEST.items() if key not in ("rate_curve", "draws")}
    page = compare(
        tmp_path,
        masked={"config": changed(CONFIG), "evaluation_test": TEST},
        causal={
            "config": changed(CONFIG, objective={"name": "autoregressive"}),
            "evaluation_test": {**exact, "likelihood": "exact", "nats_per_token": 5.25},
        },
    )
    assert rows(page.text)["NELBO or exact cross-entropy, nats/token"] == ["5.912", "5.250"]
    assert "Level lines are of autoregressive runs." in page.text
    (svg,) = re.findall(r"<svg.*?</svg>", page.text, flags=re.DOTALL)
    assert "var(--run0)" in svg and "var(--run1)" in svg
