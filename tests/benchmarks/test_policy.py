"""A policy on the recorded load of a server, whose users were 1, then 48, then 2."""

import json
from pathlib import Path

import pytest

from benchmarks import policy as command
from mdlm_jax.serving.watching.policy import Band, Policy, Stage, Times

LOG = Path(__file__).with_name("recorded_load.log")
SETTLE, DWELL = 2.0, 10.0
POLICY = Policy(
    (Stage(), Stage(share=0.5), Stage(share=0.25, steps=8)),
    {"queue_age_s": Band(2.0, 0.5)},
    Times(settle_s=SETTLE, dwell_s=DWELL),
)


@pytest.fixture(scope="module")
def asked():
    return command.recorded(LOG.read_text().splitlines(keepends=True))


def test_the_log_says_what_came_and_what_it_took(asked):
    assert len(asked) == len(LOG.read_text().splitlines()) == 304
    assert {each.evaluations for each in asked} == {16, 32, 64} and asked[0].at == 0
    assert asked == sorted(asked) and 100 < asked[-1].at < 300
    with pytest.raises(ValueError, match="no request that was answered"):
        command.recorded(["2026-11-27 15:49:48,233 mdlm_jax.serving.requests id=1 method=GET"])
    line = LOG.read_text().splitlines()[0]
    with pytest.raises(ValueError, match="whose steps a policy had already reduced"):
        command.recorded([line, f"{line} stage=2"])


def test_slots_are_shared_in_the_order_of_coming():
    """Two slots, ticks of a second: the third request waits for the first to end."""
    asked = [command.Asked(at, 1, steps, 0.0) for at, steps in [(0, 2), (0, 5), (0, 3), (100, 1)]]
    told = command.simulated(asked, None, slots=2, tick=1.0)
    assert (told["p50_s"], told["p99_s"]) == (3.5, 5.0)  # 1, 2, 5, and 2 + 3
    assert told["queue_age_s"] == 2.0 and told["evaluations"] == 11 and not told["moves"]


@pytest.mark.parametrize("faster", [1.0, 2.0])
def test_it_bears_the_recorded_load_and_comes_back(asked, faster):
    coming = [each._replace(at=each.at / faster) for each in asked]
    none, with_it = (
        command.simulated(coming, given, slots=16, tick=0.09) for given in (None, POLICY)
    )
    assert none["evaluations"] == sum(each.evaluations * each.rows for each in asked)
    assert with_it["p50_s"] < 0.5 * none["p50_s"] and with_it["p95_s"] < 0.9 * none["p95_s"]
    assert with_it["evaluations"] < 0.75 * none["evaluations"]
    # One burst: down stage by stage while it lasts, and back after it, without flapping.
    assert [stage for _, stage in with_it["moves"]] == [1, 2, 1, 0]
    down, further, back, full = (at for at, _ in with_it["moves"])
    assert further - down >= SETTLE and min(back - further, full - back) >= DWELL - 0.1
    assert sum(with_it["stages"].values()) == pytest.approx(1, abs=0.002)


def test_it_comes_back_from_any_burst(asked):
    """All come within 8 seconds, and the last is done long after that."""
    coming = [each._replace(at=each.at / 30) for each in asked]
    told = command.simulated(coming, POLICY, slots=16, tick=0.09)
    assert told["moves"][-1][1] == 0 and told["p99_s"] > 10


def test_the_command_tells_both(tmp_path, capsys):
    (tmp_path / "policy.toml").write_text(
        "[p95_s]\nupper = 5\nlower = 2\n[[stage]]\nsteps = 4\nshare = 0.5\n"
    )
    flags = [f"--log={LOG}", f"--policy={tmp_path}/policy.toml"]
    assert command.main([*flags, "--faster=3"]) == 0
    none, with_it = map(json.loads, capsys.readouterr().out.splitlines())
    assert none["policy"] == "none" and with_it["p95_s"] < none["p95_s"]
    assert command.main([flags[0], "--policy=nothing.toml"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        command.main([*flags, "--slots=0"])
