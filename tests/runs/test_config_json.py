"""The config.json of a run: what is no config is refused, and what is gone is dropped."""

import json

import pytest
from etils import epath

from mdlm_jax.pages.runs import read_run
from mdlm_jax.runs import config_json, workdir
from mdlm_jax.runs.config_of_run import get_config
from mdlm_jax.runs.experiment import FORMAT

OLD = {"format": FORMAT, "objective": {"name": "diffusion", "weighting": "elbo"}}


def test_a_key_that_is_gone_is_dropped_at_the_value_that_is_left():
    told = config_json.check(OLD, "a")
    assert told == {"format": FORMAT, "objective": {"name": "diffusion"}}
    assert OLD["objective"]["weighting"] == "elbo"  # the caller's is as it was


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": None}, "no config of a run: its format must be a number, not null"),
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1}, this version .* reads up to {FORMAT}"),
        (
            {"objective": {"weighting": "flat"}},
            "objective.weighting is 'flat', and only 'elbo' is left",
        ),
    ],
)
def test_all_who_read_it_refuse_the_same_in_one_line(tmp_path, change, told):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(OLD | change))
    folder = epath.Path(tmp_path)
    for read in (lambda: workdir.read_encoder(folder), lambda: get_config(str(path))):
        with pytest.raises(ValueError, match=told) as error:
            read()
        assert "config.json" in str(error.value) and "\n" not in str(error.value)
    if "objective" in change:  # a page needs no format
        with pytest.raises(ValueError, match=told):
            read_run(folder)


@pytest.mark.parametrize("card", ["{}", '{"label_names": "ab"}', '{"label_names": [1]}'])
def test_a_card_without_names_of_labels_is_damaged(tmp_path, card):
    (tmp_path / "data.json").write_text(card)
    with pytest.raises(ValueError, match=r"data\.json is damaged: its label_names must be a list"):
        workdir.label_names(epath.Path(tmp_path))
