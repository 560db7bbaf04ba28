"""What the tests of pages share: a run's files, and a page as a reader and a parser see it."""

import json
import math
import re
from html import unescape
from html.parser import HTMLParser

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
FILLED = {
    "prompt": "The <i>city of [MASK] [MASK].",
    "text": "the <i>city of new </script><b>york.",
    "strategy": "exact_count",
    "steps": 64,
    "seed": 7,
    "tokens": [
        ["the <i>city", -1, 0.0],
        [" of", -1, 0.0],
        [" new", 5, math.log(0.25)],
        [" </script><b>york", 2, math.log(0.0021)],
        [".", -1, 0.0],
    ],
}
FREE = {
    "prompt": "[MASK] [MASK]",
    "text": "a river & a hill\n",
    "strategy": "confidence",
    "steps": 4,
    "seed": 7,
    "tokens": [
        ["a", 3, -0.1],
        [" river", 0, -9.0],
        [" & a", 1, -2.0],
        ["", 1, -0.5],
        [" hill", 3, -1.0],
        ["\n", 2, -0.2],
    ],
}
SAMPLES = [FREE, FILLED]
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


def write_run(folder, *, records=(), **files):
    """Makes the folder of a run: `name.json` of each of `files`, and the metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in files.items():
        (folder / f"{name}.json").write_text(json.dumps(contents))
    if records:
        with MetricsWriter(folder) as writer:
            for record in records:
                writer.write(*record)
    return folder


class Page(HTMLParser):
    """Tags that are open in the end, headings, and what the page loads or links to."""

    VOID = ("meta", "input")

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
        if self.open and self.open[-1] in ("h1", "h2", "h3", "h4", "summary"):
            self.headings.append(data)

    def assert_loads_nothing(self):
        assert all(value.startswith("#") for value in self.loads)
        assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttp|import\(", self.text)
        assert not {"link", "img", "iframe", "object"} & set(self.tags)


def visible(text):
    """The text of a page, without tags and script, as a reader sees it."""
    hidden = r"<(style|script|svg).*?</\1>"
    bare = re.sub(r"<[^>]*>", " ", re.sub(hidden, " ", text, flags=re.DOTALL))
    return re.sub(r"\s+", " ", unescape(bare))


def rows(text, *labels):
    """The rows of a page's tables by their heads, which no two may share; of all tables or some."""
    tables = re.findall(r'<div class="wide" .*? aria-label="(.*?)".*?</table>', text, re.DOTALL)
    assert {*labels} <= {*tables}
    text = "".join(
        re.search(rf'aria-label="{label}".*?</table>', text, re.DOTALL)[0]
        for label in labels or tables
    )
    found = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text)
    heads = [unescape(head) for head, _ in found]
    assert len({*heads}) == len(heads)
    cells = (re.findall(r"<td>(.*?)</td>", values) for _, values in found)
    return {head: [unescape(each) for each in row] for head, row in zip(heads, cells, strict=True)}


def canvases(text):
    """The texts of a page's canvases, without tags, as a reader copies them."""
    found = re.findall(r'<p class="canvas">(.*?)</p>', text, flags=re.DOTALL)
    return [unescape(re.sub(r"<[^>]*>", "", each)) for each in found]
