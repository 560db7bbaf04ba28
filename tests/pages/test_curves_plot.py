"""The picture of several models: who is who, and what each line is."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from pages import EVALUATION

from mdlm_jax.pages.curves_plot import curves_png, read_evaluations

EXACT = {
    **{k: v for k, v in EVALUATION.items() if k != "rate_curve"},
    "likelihood": "exact",
    "nats_per_token": 5.5,
}


@pytest.fixture
def draw(monkeypatch):
    """`draw(evaluations) -> Figure`, as it is when it is saved."""
    saved = []
    original = Figure.savefig

    def keep(figure, *arguments, **options):
        saved.append(figure)
        return original(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(**evaluations):
        assert curves_png(evaluations).startswith(b"\x89PNG")
        return saved[-1]

    return draw


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_model_has_its_line_and_its_likelihood(draw):
    figure = draw(masked=EVALUATION, causal=EXACT)
    assert legend(figure) == ["masked: NELBO 5.91", "causal: exact 5.50", "unigram: 6.70"]
    (axes,) = figure.axes
    levels = [line.get_ydata() for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert any(np.all(np.asarray(level) == 5.5) for level in levels)
    curve = next(
        line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "o"
    )
    assert curve.get_xdata().tolist() == [0.15, 1.0]
    assert curve.get_ydata().tolist() == [4.93, 6.71]
    assert [text.get_text() for text in axes.texts] == ["BERT's 15 %"]
    assert axes.get_title(loc="right") == ""


def test_other_tokens_are_not_compared_in_height(draw):
    figure = draw(here=EVALUATION, there={**EVALUATION, "tokens": 7, "unigram": 3.0})
    assert "compare shapes, not heights" in figure.axes[0].get_title(loc="right")
    assert not [name for name in legend(figure) if "unigram" in name]


def write(path, evaluation):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(evaluation))
    return path


def test_files_are_called_by_what_tells_them_apart(tmp_path):
    a, b = (write(tmp_path / name / "evaluation_test.json", EVALUATION) for name in "ab")
    other = write(tmp_path / "a" / "evaluation_text.json", EXACT)
    assert list(read_evaluations([a, b])) == ["a", "b"]
    assert list(read_evaluations([a, other])) == ["a/evaluation_test", "a/evaluation_text"]
    deeper = tmp_path / "c"
    deeper.mkdir()
    same = write(deeper / "a" / "evaluation_test.json", EXACT)
    assert list(read_evaluations([a, same])) == [str(a), str(same)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "must hold an object"),
        ('{"points": []}', "holds no likelihood"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, text, message):
    (tmp_path / "frontier.json").write_text(text)
    with pytest.raises(ValueError, match=f"frontier.json.*{message}"):
        read_evaluations([tmp_path / "frontier.json"])


def test_a_file_that_is_given_twice_is_refused(tmp_path):
    path = write(tmp_path / "a" / "evaluation_test.json", EVALUATION)
    with pytest.raises(ValueError, match="given twice"):
        read_evaluations([path, path])
