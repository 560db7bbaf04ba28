"""The page of a run: what it shows, what it leaves out, and that it stands alone."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from mdlm_jax.evaluation.report import write_report
from mdlm_jax.training.metrics import MetricsWriter

CONFIG = {
    "seed": 3,
    "model": {"layers": 2, "heads": 4, "width": 16},
    "data": {"source": "wikipedia_summaries", "length": 8},
    "training": {"batch_size": 4, "mesh": {"data": 1}},
}
EVALUATION = {
    "split": "validation",
    "step": 500,
    "weights": "ema",
    "nats_per_token": 5.912,
    "mc_error": 0.011,
    "text_error": 0.023,
    "bits_per_token": 5.912 / math.log(2),
    "perplexity": math.exp(5.912),
    "tokens": 61440,
    "rows": 480,
    "draws": 8,
    "unigram": 6.701,
    "bigram": 4.822,
    "rate_curve": [
        {"rate": 0.15, "nats": 4.93, "error": 0.02},
        {"rate": 1.0, "nats": 6.71, "error": None},
    ],
}
SAMPLES = [
    {
        "prompt": "The city of [MASK] [MASK].",
        "pieces": [["the <i>city of ", False], ["new <script>york", True], [".", False]],
        "steps": 64,
        "strategy": "exact_count",
    },
    {
        "prompt": "[MASK] [MASK]",
        "pieces": [["a river & a hill", True]],
        "steps": 1,
        "strategy": "confidence",
    },
]
CARD = {
    "source": "wikipedia_summaries",
    "version": "1.0.0",
    "license": "CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). By contributors.",
    "fingerprint": "abc123",
    "config": {"source": "wikipedia_summaries", "tokenizer": "wordpiece", "length": 8},
    "splits": {
        "train": {
            "documents": 9033,
            "rows": 13408,
            "tokens": 1716270,
            "unknown_tokens": 17,
            "characters": 7678050,
            "bytes": 7786446,
        }
    },
}


BASELINES = {"unigram": 6.702, "bigram": 4.818}


class Page(HTMLParser):
    """Tags that are open in the end, headings, and what the page loads or links to."""

    VOID = ("meta",)

    def __init__(self, text):
        super().__init__()
        self.text, self.open, self.tags, self.loads, self.links = text, [], [], [], []
        self.headings = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
                (self.links if tag == "a" else self.loads).append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "summary"):
            self.headings.append(data)


def write_page(folder, *, records=(), **files):
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(contents))
    if records:
        with MetricsWriter(folder) as writer:
            for record in records:
                writer.write(*record)
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def visible(page):
    """The page's text, without tags, as a reader sees it."""
    return re.sub(
        r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]*>", " ", page.text, flags=re.DOTALL)
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a<b>run"
    folder.mkdir()
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
    ):
        assert heading in full.headings
    assert full.tags.count("svg") == 2


def test_headline_figures_are_those_of_the_test_split_with_units_and_errors(full):
    tiles = visible(full).split("Training ")[0]
    assert "NELBO 5.934 nats/token test split ± 0.011" in tiles
    assert "± 0.023" in tiles
    assert "4.822 nats/token the same tokens the NELBO is 1.11 above" in tiles
    assert "6.701 nats/token the same tokens the NELBO is 0.77 below" in tiles


def test_tokens_and_time_come_from_the_records(full):
    text = visible(full)
    assert "16.0 k tokens 500 steps 100 updates skipped" in text  # 500 steps of 4 x 8
    # 200 steps at one a second (the record without a pace keeps the last), 300 at two seconds.
    assert "13.3 minutes 20 tokens/s" in text


def test_every_split_has_its_line(full):
    rows = re.findall(r"<tr><td>(test|validation)</td><td>([\d.]+)</td>", full.text)
    assert rows == [("test", "5.934"), ("validation", "5.912")]


def test_figures_draw_the_baselines_and_the_rate_of_bert(full):
    training, curve = re.findall(r"<svg.*?</svg>", full.text, flags=re.DOTALL)
    for label in ("training loss", "validation NELBO", "unigram 6.70", "bigram 4.82", "step"):
        assert f">{label}</text>" in training
    for label in ("NELBO 5.93", "BERT's 15 %", "mask rate", "nats per masked token", "100 %"):
        assert f">{label}</text>" in curve
    assert "15 %, 4.93 nats per masked token" in visible(full)


def test_generated_text_is_marked_and_given_text_is_not(full):
    assert "<p>the &lt;i&gt;city of <mark>new &lt;script&gt;york</mark>.</p>" in full.text
    assert "<p><mark>a river &amp; a hill</mark></p>" in full.text
    assert "The city of [MASK] × 2. · 64 steps · exact count" in visible(full)


def test_nothing_that_a_run_left_becomes_a_tag(full):
    assert "script" not in full.tags and "b" in full.tags  # of the headline alone:
    assert "halfway &lt;b&gt;there" in full.text
    assert "<h1>a&lt;b&gt;run</h1>" in full.text


def test_the_page_loads_nothing(full):
    assert full.loads and all(value.startswith("#") for value in full.loads)
    assert set(full.links) == {"https://creativecommons.org/licenses/by-sa/4.0/"}
    assert not re.search(r"@import|url\((?!#)", full.text)
    assert not {"script", "link", "img", "iframe", "object"} & set(full.tags)


def test_ids_are_not_shared_by_different_things(full):
    defined = re.findall(r'<(\w+) id="([^"]+)"([^>]*)>', full.text)
    contents = {}
    for tag, name, rest in defined:
        assert contents.setdefault(name, (tag, rest)) == (tag, rest)
    assert {value.removeprefix("#") for value in full.loads} <= set(contents)


def test_the_data_card_shows_licence_and_sizes(full):
    text = visible(full)
    assert "CC BY-SA 4.0" in text and "By contributors." in text
    assert "wikipedia_summaries, version 1.0.0" in text
    assert "9,033 13,408 1,716,270 17 7,678,050 7,786,446" in re.sub(" +", " ", text)


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
        ({"samples": SAMPLES[:1]}, ["Infilling"]),
        ({"samples": []}, []),
        ({"data": CARD}, ["Data"]),
        ({"records": [(4, "train", {"skipped": 4})]}, ["trained for"]),
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
