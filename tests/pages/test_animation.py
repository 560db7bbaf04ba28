"""The animation as HTML: the final text is there without a script, and text stays text."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import FILLED, FREE, SAMPLES, Page, canvases, visible

from mdlm_jax.pages import animation


def of(tokens, **changes):
    return {**FREE, "text": "".join(piece for piece, _, _ in tokens), "tokens": tokens, **changes}


def test_the_page_stands_alone_and_is_well_formed():
    page = Page(animation.page(SAMPLES, "a <b>title"))
    page.assert_loads_nothing()
    assert page.open == []
    assert page.headings == ["a <b>title", "Infilling", "Text from nothing but masks"]
    assert page.tags.count("script") == 1


def test_the_final_text_is_there_without_a_script():
    assert canvases(animation.animation([FREE])) == ["a river & a hill\n"]
    assert canvases(animation.animation([FILLED])) == [FILLED["text"]]


@given(
    st.lists(
        st.tuples(st.text(max_size=4), st.integers(-1, 3), st.floats(-20, 0)),
        min_size=1,
        max_size=9,
    )
)
def test_any_text_survives_and_becomes_no_tag(tokens):
    sample = of(tokens)
    text = animation.animation([sample])
    assert canvases(text) == [sample["text"]]
    page = Page(text)
    assert page.open == [] and page.tags.count("script") == 1
    assert page.tags.count("i") == sum(step >= 0 for _, step, _ in tokens)


def test_a_text_that_closes_scripts_never_enters_one():
    (script,) = re.findall(r"<script>(.*?)</script>", animation.animation([FILLED]), re.DOTALL)
    assert "york" not in script and script.count("<") < 20
    assert animation.animation([FILLED]).count("</script>") == 1


def test_the_script_reads_the_steps_and_probabilities_of_what_was_generated():
    assert 'data-steps="64" data-at="5 2" data-percent="25 0.21"' in animation.animation([FILLED])


@pytest.mark.parametrize(
    ("probability", "shade"),
    [(1.0, 4), (0.51, 4), (0.49, 3), (0.21, 3), (0.06, 2), (0.02, 1), (0.009, 0), (1e-9, 0)],
)
def test_shades_are_by_probability(probability, shade):
    text = animation.animation([of([["word", 0, math.log(probability)]])])
    assert f"<mark><i class=c{shade}>word</i></mark>" in text


def test_the_legend_tells_the_shades():
    told = "under 1 % 1–5 % 5–20 % 20–50 % over 50 % masked"
    assert told in visible(animation.animation([FREE]))


def test_spaces_stay_outside_of_the_blocks_and_line_ends_have_one():
    text = animation.animation([of([[" a ", 0, 0.0], ["\n", 0, 0.0], ["", 1, 0.0]])])
    assert '<mark> <i class=c4>a</i> <i class="c4 end"></i>\n<i class=c4></i></mark>' in text


def test_samples_stand_by_kind_each_with_its_notes():
    text = visible(animation.animation(SAMPLES))
    first, second = text.index("Infilling"), text.index("Text from nothing but masks")
    assert first < text.index("The <i>city of [MASK] × 2. · 64 steps") < second
    assert second < text.index("4 steps · confidence · seed 7")
    assert "Infilling" not in animation.animation([FREE])
    assert "1 step ·" in visible(animation.animation([{**FREE, "steps": 1}]))


def test_an_answer_stands_with_its_question():
    asked = {**FREE, "prompt": "How <deep> is it?"}
    text = visible(animation.animation([*SAMPLES, asked]))
    order = [text.index(told) for told in ("Infilling", "Answers", "Text from nothing but masks")]
    assert order == sorted(order)
    assert order[1] < text.index("How <deep> is it? · 4 steps") < order[2]


def test_one_sample_needs_no_play_all():
    assert "Play all</button>" not in animation.animation([FREE])
    assert "Play all</button>" in animation.animation(SAMPLES)


def test_side_by_side_names_are_headings():
    page = Page(animation.side_by_side({"a<b>": FREE, "c": {**FREE, "steps": 8}}))
    assert page.headings == ["a<b>", "c"] and page.open == []


def test_many_long_samples_make_a_small_page():
    long = of([[f" word{i}", i % 128, -1.0] for i in range(512)], steps=128)
    assert len(animation.page([long] * 20, "long")) < 1_000_000


def test_a_prompt_of_gaps_alone_is_no_infilling():
    page = Page(animation.animation([{**FREE, "prompt": "{mask:12}"}]))
    assert page.headings == ["Text from nothing but masks"]
