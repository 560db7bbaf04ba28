import collections

import pytest

from mdlm_jax.serving.versions import references
from mdlm_jax.serving.versions.references import Reference


@pytest.mark.parametrize(
    "text, meant",
    [
        ("models:/quickstart", Reference("quickstart")),
        ("models:/quickstart@champion", Reference("quickstart", alias="champion")),
        ("models:/a-b_c.2/12", Reference("a-b_c.2", number=12)),
    ],
)
def test_a_reference_is_read_and_written(text, meant):
    assert references.parse(text) == meant
    assert str(meant) == text


@pytest.mark.parametrize(
    "text", ["models:/", "models:/a/b", "models:/a@", "models:/a@b/1", "models:/a'b", "a/1"]
)
def test_what_names_no_version_is_refused(text):
    with pytest.raises(ValueError, match="write models:/name, models:/name@champion or models:/n"):
        references.parse(text)


def test_shares_are_read():
    told = references.parse_shares("champion=0.9, challenger=0.1")
    assert told == {"champion": 0.9, "challenger": 0.1}
    assert references.parse_shares("") == {}


@pytest.mark.parametrize(
    "text, told",
    [
        ("champion", "'champion' is no share"),
        ("champion=much", "'champion=much' is no share"),
        ("champion=-1", "the share of champion must be 0 or more, not -1"),
        ("champion=nan", "the share of champion must be 0 or more, not nan"),
        ("champion=inf", "the share of champion must be 0 or more, not inf"),
        ("champion=0,challenger=0", "all shares are 0"),
    ],
)
def test_other_shares_are_refused(text, told):
    with pytest.raises(ValueError, match=told):
        references.parse_shares(text)


KEYS = [f"user {number}" for number in range(20_000)]


def test_keys_fall_to_names_by_their_shares():
    shares = {"champion": 9.0, "challenger": 3.0, "third": 0.0}
    counts = collections.Counter(references.chosen(shares, key) for key in KEYS)
    assert counts.keys() == {"champion", "challenger"}
    # 6 standard deviations of a binomial
    assert abs(counts["challenger"] / len(KEYS) - 0.25) < 6 * (0.25 * 0.75 / len(KEYS)) ** 0.5


def test_a_change_of_shares_moves_only_the_keys_that_it_must():
    before = {"a": 0.5, "b": 0.3, "c": 0.2}
    after = {"a": 0.5, "b": 0.3, "c": 0.4}
    pairs = [(references.chosen(before, key), references.chosen(after, key)) for key in KEYS]
    assert {now for old, now in pairs if old != now} == {"c"}
    assert not any(old == "c" != now for old, now in pairs)


def test_the_order_and_the_scale_of_shares_do_not_matter():
    one, other = {"a": 0.9, "b": 0.1}, {"b": 10.0, "a": 90.0}
    assert all(references.chosen(one, key) == references.chosen(other, key) for key in KEYS[:500])


def test_a_key_may_be_any_text():
    assert references.chosen({"a": 1.0}, "\udcff ä 😀") == "a"
