"""The perplexity by size of blocks: trained, measured and gathered on a tiny text."""

import json
import math

import pytest
from command_runs import TINY, write_text

from benchmarks import block_quality

pytestmark = pytest.mark.slow


def test_sizes_are_trained_measured_and_gathered(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MDLM_JAX_CACHE", str(tmp_path / "cache"))
    text = write_text(tmp_path / "text.txt")
    tiny = [argument.format(text=text, folder=tmp_path) for argument in TINY]
    own = [each for each in tiny if each.startswith("--config.") and "data.length" not in each]
    own += ["--config.model.attention=full", "--config.model.window=0"]
    flags = [f"--folder={tmp_path}/runs", "--length=16"]
    all_tokens = ["--tokens_a_step", "1", "2", "8"]
    train = ["train", *flags, "--config=quickstart", "--draws=2", "--samples=4", *own]
    assert block_quality.main(["gather", *flags, "--sizes", "4"]) == 2
    assert "no evaluation_test.json of sizes [4]" in capsys.readouterr().err
    assert block_quality.main([*train, "--sizes", "4", *all_tokens]) == 0
    written = tmp_path / "runs" / "4" / "evaluation_test.json"
    first = written.stat().st_mtime_ns
    assert block_quality.main([*train, "--sizes", "4", *all_tokens]) == 0
    assert written.stat().st_mtime_ns == first  # not once more
    assert block_quality.main(["gather", *flags, "--sizes", "4"]) == 0
    (line,) = json.loads((tmp_path / "runs" / "block_quality.json").read_text())
    assert line["perplexity"] == pytest.approx(math.exp(line["nats_per_token"]))
    error = math.hypot(line["mc_error"], line["text_error"])
    assert line["perplexity_error"] == pytest.approx(line["perplexity"] * error)
    points = line["frontier"]["points"]
    assert [point["steps"] for point in points] == [16, 8, 4]
    assert [point["evaluations"] for point in points] == [16, 8, 4]  # 1, 2 and 4 tokens each
    assert "<svg" in (tmp_path / "runs" / "block_quality.svg").read_text()


def test_what_cannot_be_trained_is_refused(capsys):
    for flags, told in [
        (["--sizes", "3"], "--sizes 3: must divide"),
        (["--nosuch"], "--nosuch: no"),
    ]:
        with pytest.raises(SystemExit) as ended:
            block_quality.main(["train", *flags])
        assert ended.value.code == 2 and told in capsys.readouterr().err
