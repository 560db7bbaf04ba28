"""The load on an engine at a tiny shape: what its lines hold."""

import json

import pytest

from benchmarks import serving

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("own", [[], ["--block_size=4", "--strategy=threshold"]], ids=str)
def test_a_load_is_told_beside_one_request_at_a_time(own, capsys):
    flags = ["--shape=tiny", "--length=16", "--slots=4", "--steps=6", "--seconds=0.5", *own]
    assert serving.main([*flags, "--clients", "1", "6"]) == 0
    alone, *loads = map(json.loads, capsys.readouterr().out.splitlines())
    assert alone["figure"] == "one_request_at_a_time" and alone["rows"] == 1
    assert [line["clients"] for line in loads] == [1, 6]
    for line in loads:
        assert line["figure"] == "serving" and line["requests"] > 0
        ratio = line["requests_per_second"] / alone["requests_per_second"]
        assert line["times_alone"] == pytest.approx(ratio, rel=1e-2)
        assert 0 < line["first_p50_ms"] <= line["p50_ms"] <= line["p99_ms"]
        assert line["host_share"] > -1 and line["ticks_a_round"] > 0 and line["occupancy"] <= 1.01
    assert loads[1]["occupancy"] > loads[0]["occupancy"]


def test_what_cannot_be_measured_is_named(capsys):
    for flag, line in {
        "--slots=0": "--slots=0: must be above 0",
        "--clients=0": "--clients=0: must be at least 1",
        "--block_size=999": "--block_size=999: must be from 1 to 128",
    }.items():
        with pytest.raises(SystemExit):
            serving.main([flag])
        assert line in capsys.readouterr().err
