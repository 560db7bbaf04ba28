"""The page of a run: what it shows, what it leaves out, and that it stands alone."""

import re
from xml.sax.saxutils import escape

import pytest
from pages import CARD, CONFIG, EVALUATION, SAMPLES, Page, canvases, rows, visible, write_run

from mdlm_jax.pages.report import write_report
from mdlm_jax.runs import families
from mdlm_jax.runs.experiment import ObjectiveConfig

LIKELIHOOD = "Likelihood by split"
BASELINES = {"unigram": 6.702, "bigram": 4.818}


def write_page(folder, **files):
    path = write_report(write_run(folder, **files))
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a<b>run"
    records = [
        (100, "train", {"loss": 8.0, "grad_norm": 1.0, "skipped": 0, "tokens_per_second": 32.0}),
        (200, "train", {"skipped": 100}),
        (500, "train", {"loss": 6.0, "grad_norm": 1.0, "skipped": 0, "tokens_per_second": 16.0}),
        (
            500,
            "eval",
            {"nats_per_token": 5.9, "mc_error": 0.01, "text_error": 0.02, **BASELINES},
        ),
        (500, "sample", {"text": "halfway <b>there"}),
    ]
    test = {**EVALUATION, "split": "test", "nats_per_token": 5.934}
    return write_page(
        folder,
        records=records,
        config=CONFIG,
        evaluation_validation=EVALUATION,
        evaluation_test=test,
        samples=SAMPLES,
        data=CARD,
    )


def test_the_page_shows_each_section_and_is_well_formed(full):
    assert full.open == []
    for heading in (
        *("a<b>run", "NELBO", "bigram cross-entropy", "unigram cross-entropy", "trained on"),
        *("training time", "Training", "A masked token, by mask rate", "Likelihood", "Infilling"),
        *("Text from nothing but masks", "Samples during training", "Data", "Configuration"),
        *("Throughput", "Samples"),
    ):
        assert heading in full.headings
    assert full.tags.count("svg") == 3


def test_headline_figures_are_those_of_the_test_split_with_units_and_errors(full):
    tiles = visible(full.text).split("Training ")[0]
    assert "NELBO 5.934 nats/token test split ± 0.011" in tiles
    assert "± 0.023" in tiles
    assert "4.822 nats/token the same tokens the NELBO is 1.11 above" in tiles
    assert "6.701 nats/token the same tokens the NELBO is 0.77 below" in tiles


def test_tokens_and_time_come_from_the_records(full):
    text = visible(full.text)
    assert "16.0 k tokens 500 steps 100 updates skipped" in text  # 500 steps of 4 x 8
    # 200 steps at one a second (the record without a pace keeps the last), 300 at two seconds.
    assert "13.3 minutes 20 tokens/s" in text


def test_every_split_has_its_column(full):
    assert '<th scope="col">test</th><th scope="col">validation</th>' in full.text
    assert rows(full.text, LIKELIHOOD)["NELBO, nats/token"] == ["5.934", "5.912"]
    assert rows(full.text, LIKELIHOOD)["perplexity"] == ["369.4", "369.4"]
    assert "trigram, nats/token" not in rows(full.text, LIKELIHOOD)  # neither split has one


def test_figures_draw_the_baselines_and_the_rate_of_bert(full):
    training, curve, throughput = re.findall(r"<svg.*?</svg>", full.text, flags=re.DOTALL)
    for label in ("training loss", "validation NELBO", "unigram 6.70", "bigram 4.82", "step"):
        assert f">{label}</text>" in training
    for label in ("NELBO 5.93", "BERT's 15 %", "mask rate", "nats per masked token", "100 %"):
        assert f">{label}</text>" in curve
    assert ">tokens per second</text>" in throughput
    assert "there, 4.93 nats per masked token" in visible(full.text)


def test_samples_are_played_and_what_was_generated_is_marked(full):
    assert canvases(full.text) == [SAMPLES[1]["text"], SAMPLES[0]["text"]]  # infilling first
    marked = re.findall(r"<mark>(.*?)</mark>", full.text, flags=re.DOTALL)
    assert visible(marked[0]).split() == ["new", "</script><b>york"]
    assert len(marked) == 2
    assert "[MASK] × 2. · 64 steps · exact count · seed 7" in visible(full.text)


def test_nothing_that_a_run_left_becomes_a_tag(full):
    assert full.tags.count("script") == full.text.count("</script>") == 1
    assert "&lt;/script&gt;&lt;b&gt;york" in full.text
    assert "halfway &lt;b&gt;there" in full.text
    assert "<h1>a&lt;b&gt;run</h1>" in full.text


def test_the_page_loads_nothing(full):
    full.assert_loads_nothing()
    assert full.loads
    assert set(full.links) == {"https://creativecommons.org/licenses/by-sa/4.0/"}


def test_ids_are_not_shared_by_different_things(full):
    defined = re.findall(r'<(\w+) id="([^"]+)"([^>]*)>', full.text)
    contents = {}
    for tag, name, rest in defined:
        assert contents.setdefault(name, (tag, rest)) == (tag, rest)
    assert {value.removeprefix("#") for value in full.loads} <= set(contents)


def test_memory_is_that_of_the_device_where_it_is_told(tmp_path):
    memory = [{"host_memory_bytes": 2**31}, {"host_memory_bytes": 3 * 2**30}]
    records = [(4 + i, "train", values) for i, values in enumerate(memory)]
    text = visible(write_page(tmp_path, config={}, records=records).text)
    assert "peak memory 3.0 GiB of the host process" in text
    records = [(4, "train", {**memory[0], "device_memory_bytes": 300 * 2**20})]
    (tmp_path / "metrics.jsonl").unlink()
    text = visible(write_page(tmp_path, records=records).text)
    assert "peak memory 300 MiB of the fullest local device host process: 2.0 GiB" in text


LOSS = [(4, "train", {"loss": 3.0})]


@pytest.mark.parametrize(
    ("objective", "there", "absent"),
    [
        (
            {"name": "mlm", "rate": 0.2},
            "BERT's loss at 20\xa0%",
            "over all mask rates. That makes",
        ),
        ({"name": "mlm", "rate": 0.2}, "no estimate of the NELBO", "is an estimate of the NELBO"),
        ({"weighting": "elbo"}, "is an estimate of the NELBO", "no estimate of the NELBO"),
    ],
)
def test_the_loss_is_called_what_it_is(tmp_path, objective, there, absent):
    page = write_page(tmp_path, config={"objective": objective}, records=LOSS)
    text = re.sub(r"[ \n]+", " ", page.text)
    assert there in text and absent not in text


@pytest.mark.parametrize("name", families.NAMES)
def test_a_run_is_told_in_the_words_of_its_family(tmp_path, name):
    objective = {"name": name} | ({"block_size": 4} if name == "block" else {})
    page = write_page(tmp_path, config={"objective": {**objective, "later": 1}}, records=LOSS)
    about = families.family_of(name).about(ObjectiveConfig(**objective))
    text = visible(page.text)
    assert f"encoder {about.training}".replace("\xa0", " ") in text and about.loss_note in text
    assert f">{escape(about.loss)}</text>" in page.text


def test_a_family_without_words_is_told_by_its_name():
    silent = families.family_of("diffusion")._replace(
        about=families.Family._field_defaults["about"]
    )
    about = silent.about(ObjectiveConfig(name="mlm"))
    assert "'mlm'" in about.training and "'mlm'" in about.loss_note


def test_the_data_card_shows_whatever_sizes_there_are(tmp_path):
    card = {
        **CARD,
        "config": {**CARD["config"], "rows": "padded"},
        "splits": {"train": {"rows": 3, "cut_tokens": 41}, "test": {"rows": 1, "longest": 512}},
    }
    records = [(500, "train", {"loss": 6.0})]
    text = visible(write_page(tmp_path, config=CONFIG, data=card, records=records).text)
    assert "train test rows 3 1 cut tokens 41 – longest – 512" in text
    assert "16.0 k tokens 500 steps padding included" in text


def test_the_data_card_shows_licence_and_sizes(full):
    text = visible(full.text)
    assert "CC BY-SA 4.0" in text and "By contributors." in text
    assert "wikipedia_summaries, version 1.0.0" in text
    assert rows(full.text, "Sizes of the splits")["unknown tokens"] == ["17"]
    assert rows(full.text, "Sizes of the splits")["bytes"] == ["7,786,446"]


def test_the_configuration_is_listed_by_section(full):
    assert "<h3>training</h3><dl><dt>batch_size</dt><dd>4</dd><dt>mesh.data</dt>" in full.text
    assert "<dt>seed</dt><dd>3</dd>" in full.text


def test_missing_files_leave_their_sections_out(tmp_path):
    page = write_page(tmp_path, config={})
    assert page.open == []
    assert page.headings == [tmp_path.name, "Configuration"]
    assert "svg" not in page.tags


@pytest.mark.parametrize(
    ("files", "headings"),
    [
        ({"samples": SAMPLES[1:]}, ["Samples", "Infilling"]),
        ({"samples": []}, []),
        ({"data": CARD}, ["Data"]),
        ({"records": [(4, "train", {"skipped": 4})]}, ["trained for"]),
        (
            {"records": [(4, "train", {"host_memory_bytes": 2**30})]},
            ["trained for", "peak memory"],
        ),
        ({"records": [(4, "eval", {"nats_per_token": 3.0})]}, ["Training"]),
        ({"records": [(4, "train", {"loss": 3.0})]}, ["trained for", "Training"]),
        (
            {"evaluation_test": {"split": "test", "nats_per_token": 3.0, "text_error": None}},
            ["NELBO", "Likelihood"],
        ),
        (
            {"evaluation_test": {"split": "test", "nats_per_token": 3.0, "rate_curve": []}},
            ["NELBO", "Likelihood"],
        ),
    ],
)
def test_a_file_brings_its_own_sections_alone(tmp_path, files, headings):
    page = write_page(tmp_path, config={}, **files)
    assert page.headings == [tmp_path.name, *headings, "Configuration"]


def test_an_old_report_is_replaced_and_nothing_else_is_left(tmp_path):
    write_page(tmp_path, config={"seed": 1})
    page = write_page(tmp_path, config={"seed": 2})
    assert "<dd>2</dd>" in page.text and "<dd>1</dd>" not in page.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "report.html"]


def test_a_folder_without_a_configuration_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json") as error:
        write_report(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


CALIBRATED = [
    {**point, "accuracy": 0.5, "confidence": 0.4, "calibration_error": error}
    for point, error in zip(EVALUATION["rate_curve"], (0.1, 0.25), strict=True)
]


def test_calibration_has_a_figure_where_it_was_measured(tmp_path):
    evaluation = {**EVALUATION, "rate_curve": CALIBRATED}
    page = write_page(tmp_path, config=CONFIG, evaluation_validation=evaluation)
    assert "Accuracy and confidence, by mask rate" in page.headings
    _, svg = re.findall(r"<svg.*?</svg>", page.text, flags=re.DOTALL)
    for label in ("accuracy", "confidence", "BERT's 15 %", "of the masked tokens"):
        assert f">{label}</text>" in svg
    assert "100\xa0% masked (expected calibration error 25\xa0%)" in page.text.replace("\n", " ")


def test_an_autoregressive_run_is_nowhere_called_a_bound(tmp_path):
    exact = {key: value for key, value in EVALUATION.items() if key not in ("rate_curve", "draws")}
    page = write_page(
        tmp_path,
        config={**CONFIG, "objective": {"name": "autoregressive"}},
        records=[*LOSS, (4, "eval", {"nats_per_token": 3.0, "mc_error": 0.0})],
        evaluation_validation={**exact, "likelihood": "exact", "mc_error": 0.0},
    )
    text = visible(page.text)
    assert "NELBO" not in page.text and "mask" not in text.split("trained autoregressively")[0]
    assert "cross-entropy 5.912 nats/token validation split exact: nothing was drawn" in text
    assert "validation cross-entropy</text>" in page.text
    assert "A masked token, by mask rate" not in page.headings
