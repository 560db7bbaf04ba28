"""The state machine of a policy, under any load, and what its file may say."""

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdlm_jax.serving.watching import policy
from mdlm_jax.serving.watching.policy import Band, Load, Policy, Stage, State, Times, following

QUEUE = Band(upper=2.0, lower=0.5)
STAGES = (Stage(), Stage(share=0.5), Stage(steps=8), Stage(steps=4, model="small"))
CALM, BETWEEN, OVER = Load(0.0), Load(1.0), Load(3.0)

levels = st.sampled_from([0.0, 0.49, 0.5, 1.0, 2.0, 2.01, 10.0])
loads = st.builds(Load, levels, st.none() | levels, st.none() | levels)
looks = st.lists(st.tuples(loads, st.sampled_from([0.0, 0.5, 1.0, 4.0, 30.0])), max_size=80)


@st.composite
def policies(draw):
    names = draw(st.sets(st.sampled_from(Load._fields), min_size=1))
    times = Times(
        settle_s=draw(st.sampled_from([0.0, 3.0])), dwell_s=draw(st.sampled_from([0, 10]))
    )
    stages = STAGES[: draw(st.integers(2, len(STAGES)))]
    return Policy(stages, dict.fromkeys(names, QUEUE), times)


def run(steered, seen):
    """The moments, loads and states of all looks."""
    now, state, states = 100.0, State(), []
    for load, pause in seen:
        now += pause
        state = following(steered, state, load, now)
        states.append((now, load, state))
    return states


def moves(states):
    """When it moved, from which stage to which."""
    before = 0
    for now, _, state in states:
        if state.stage != before:
            yield now, before, state.stage
        before = state.stage


@given(policies(), looks)
def test_it_skips_no_stage_and_stays_within_them(steered, seen):
    for _, before, after in moves(run(steered, seen)):
        assert abs(after - before) == 1 and 0 <= after < len(steered.stages)


@given(policies(), looks)
def test_it_does_not_flap(steered, seen):
    """Down after what the last move did could be seen, back after the dwell time."""
    last = -math.inf
    for now, before, after in moves(run(steered, seen)):
        times = steered.times
        assert now - last >= (times.settle_s if after > before else times.dwell_s)
        last = now


@given(policies(), looks)
def test_it_moves_back_only_after_so_much_calm(steered, seen):
    states = run(steered, seen)
    for now, before, after in moves(states):
        if after < before:
            lately = [load for at, load, _ in states if now - steered.times.dwell_s < at <= now]
            measured = [getattr(load, name) for load in lately for name in steered.bands]
            assert all(value is None or value < QUEUE.lower for value in measured)


@given(policies(), looks)
def test_between_the_thresholds_nothing_moves(steered, seen):
    _, _, state = [(0.0, CALM, State()), *run(steered, seen)][-1]
    for now in range(10_000, 20_000, 777):
        moved = following(steered, state, Load(BETWEEN[0], 1.0, 1.0), float(now))
        assert moved.stage == state.stage
        state = moved


@given(policies(), looks)
def test_it_is_back_when_the_load_has_ended_and_down_when_it_stays(steered, seen):
    states = run(steered, seen)
    now, state = (states[-1][0], states[-1][2]) if states else (100.0, State())
    over, calm = state, state
    for k in range(1, len(steered.stages) + 1):
        pause = k * (steered.times.dwell_s + steered.times.settle_s + 0.1)
        over = following(steered, over, Load(9.0, 9.0, 9.0), now + pause)
        calm = following(steered, calm, Load(0.1, None, 0.1), now + pause)
    assert over.stage == len(steered.stages) - 1 and calm.stage == 0


def test_one_load_from_beginning_to_end():
    steered = Policy(STAGES, {"queue_age_s": QUEUE}, Times(settle_s=5.0, dwell_s=60.0))
    seen = [(OVER, 0.5)] * 30 + [(CALM, 0.5)] * 60 + [(BETWEEN, 0.5)] + [(CALM, 0.5)] * 400
    found = [(at - 100.0, before, after) for at, before, after in moves(run(steered, seen))]
    assert found == [
        (0.5, 0, 1), (5.5, 1, 2), (10.5, 2, 3),  # each after the last one had its time
        (45.5 + 60.0, 3, 2), (165.5, 2, 1), (225.5, 1, 0),
    ]  # fmt: skip


@given(st.integers(1, 5000))
def test_stages_give_no_more_than_was_asked_for(asked):
    full, half, few, small = STAGES
    assert full.steps_of(asked) == asked
    assert half.steps_of(asked) == (asked + 1) // 2
    assert few.steps_of(asked) == min(asked, 8) and small.steps_of(asked) == min(asked, 4)


WHOLE = """
settle_s = 2
window_s = 10.5
[queue_age_s]
upper = 2
lower = 0.5
[memory]
upper = 0.9
lower = 0.8
[[stage]]
share = 0.5
[[stage]]
steps = 8
share = 0.25
[[stage]]
model = "small"
"""


def test_a_file_is_read(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(WHOLE)
    assert policy.read(str(path)) == Policy(
        (Stage(), Stage(0.5), Stage(0.25, 8), Stage(model="small")),
        {"queue_age_s": Band(2, 0.5), "memory": Band(0.9, 0.8)},
        Times(settle_s=2, window_s=10.5),
    )


def test_the_guide_s_policy_is_one(tmp_path):
    guide = (Path(__file__).parents[3] / "docs" / "watching.md").read_text()
    (text,) = re.findall(r"```toml\n(# policy.toml\n.*?)```", guide, re.S)
    (tmp_path / "policy.toml").write_text(text)
    assert len(policy.read(str(tmp_path / "policy.toml")).stages) == 4


QUEUE_TABLE, ONE = "[queue_age_s]\nupper = 2\nlower = 1\n", "[[stage]]\nshare = 0.5\n"


@pytest.mark.parametrize(
    "text, told",
    [
        ("x = [", "is no TOML"),
        (ONE, "no threshold: give one of [queue_age_s], [p95_s], [memory]"),
        (QUEUE_TABLE, "no stage: begin each with [[stage]], and give its share, steps or model"),
        (QUEUE_TABLE + "[stage]\nshare = 0.5", "no stage: begin each with [[stage]]"),
        (QUEUE_TABLE + "[[stages]]\nshare = 0.5", "unknown key stages (do you mean stage?)"),
        (QUEUE_TABLE + "[[stage]]\nstep = 5", "unknown key step (do you mean steps?): stage 1 has"),
        (
            QUEUE_TABLE + "[[stage]]\nsteps = 0.5",
            "stage 1: steps = 0.5 must be a whole number from",
        ),
        (QUEUE_TABLE + "[[stage]]\nshare = 0", "stage 1: share = 0 leaves no steps"),
        (QUEUE_TABLE + "[[stage]]\nshare = 2", "stage 1: share = 2 must be a number from 0.0 to 1"),
        (QUEUE_TABLE + "[[stage]]\nmodel = 2", "stage 1: model = 2 must be a text"),
        (QUEUE_TABLE + "[[stage]]\n", "stage 1 must do less than the one before"),
        (
            QUEUE_TABLE + ONE + "[[stage]]\nshare = 0.6",
            "stage 2 leaves 2 of 2 steps, the one before 1: a stage must not give more, so give it "
            "share = 0.5 at most",
        ),
        (QUEUE_TABLE + ONE + "[[stage]]\nsteps = 8", "so give it share = 0.5 at most"),
        (
            QUEUE_TABLE + "[[stage]]\nsteps = 8\n[[stage]]\nsteps = 8\nshare = 0.5\n" + ONE,
            "stage 3 leaves 9 of 17 steps, the one before 8: a stage must not give more, so give "
            "it steps = 8 at most",
        ),
        (QUEUE_TABLE + ONE + ONE, "stage 2 must do less than the one before"),
        (ONE + "[p95_s]\nupper = 2", "[p95_s] has no lower"),
        (ONE + "[p95_s]\nupper = 2\nlower = 3", "[p95_s]: lower = 3 is above upper = 2"),
        (ONE + "[p95_s]\nupper = 2\nlower = 0", "[p95_s]: lower = 0 is never undercut"),
        (ONE + "p95_s = 3", "stage 1 has"),  # a key of the table before
        ("p95_s = 3\n" + ONE, "[p95_s] must be a table"),
        ("dwell_s = -1\n" + QUEUE_TABLE + ONE, "dwell_s = -1 must be a number from 0.0 to 86400.0"),
    ],
)
def test_what_is_no_policy_is_one_line(tmp_path, text, told):
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as refused:
        policy.read(str(path))
    assert told in str(refused.value) and str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)
