"""The templates: escaped, strict, shipped; and how quantities are written in them."""

import pathlib
import tomllib

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from pages import visible

from mdlm_jax.pages import template

PACKAGE = pathlib.Path(template.__file__).parents[1]


def test_text_is_escaped_and_markup_is_not():
    hostile = "<b>&\"'"
    page = template.render("samples.html.j2", title=hostile, filling=Markup("<i>kept</i>"))
    assert isinstance(page, Markup)
    assert "<h1>&lt;b&gt;&amp;&#34;&#39;</h1>" in page and "<i>kept</i>" in page
    assert "&lt;i&gt;lost" in template.render("samples.html.j2", title="", filling="<i>lost</i>")


def test_a_value_that_is_missing_raises():
    with pytest.raises(jinja2.UndefinedError, match="'filling' is undefined"):
        template.render("samples.html.j2", title="a title")


def test_every_file_of_the_package_that_is_not_python_is_shipped_in_the_wheel():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = {
        path
        for package, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in PACKAGE.parent.joinpath(*package.split(".")).glob(pattern)
    }
    others = {
        path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert others == shipped and len(others) >= 8


@given(st.lists(st.sampled_from(["a", " ", "(", ").", "http://b.c/d", "https://e.f?g=h&i"])))
def test_addresses_are_split_from_text_and_nothing_is_lost(parts):
    pieces = list(template.split_links("".join(parts)))
    assert "".join(text + address for text, address in pieces) == "".join(parts)
    assert not any("http" in text for text, _ in pieces)
    assert all(address.startswith("http") for _, address in pieces[:-1])


def test_what_ends_the_sentence_is_no_part_of_an_address():
    assert list(template.split_links("by B (https://b.c/d/). At https://e.f.")) == [
        ("by B (", "https://b.c/d/"),
        ("). At ", "https://e.f"),
        (".", ""),
    ]


def test_rows_leave_out_what_no_column_has():
    quantities = [("bits", "bits", ".1f"), ("none", "none", ""), ("name", "name", "")]
    columns = iter([{"bits": 1.25, "none": None}, {"name": "a"}])
    assert template.rows(quantities, columns) == [["bits", "1.2", "–"], ["name", "–", "a"]]


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (template.count(999), "999"),
        (template.count(1_234_567), "1.2 M"),
        (template.percent(0.15), "15\xa0%"),
        (template.number(None, ".3f"), "–"),
        (template.number(1234.5678, ",.2f"), "1,234.57"),
        (template.duration(119), ("119", "seconds")),
        (template.duration(120), ("2.0", "minutes")),
        (template.duration(7200), ("2.0", "hours")),
        (template.memory(2**29), ("512", "MiB")),
        (template.memory(3 * 2**30), ("3.0", "GiB")),
    ],
)
def test_quantities_are_written_with_their_units(written, wanted):
    assert written == wanted


def test_a_table_names_its_rows_and_columns():
    macro = template._environment().get_template("parts.html.j2").module.table
    text = macro("Sizes <x>", ["", "test"], [["rows", "<3"]])
    assert 'aria-label="Sizes &lt;x&gt;"' in text and '<th scope="row">rows</th>' in text
    assert visible(text).split() == ["test", "rows", "<3"]
