"""Prometheus' rules and Grafana's dashboard of a server: they are valid, fire when they should, and
name nothing that a server does not tell.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from mdlm_jax.serving.watching import metrics

LAUNCH = Path(__file__).parents[2] / "launch"
RULES, BOARD = LAUNCH / "prometheus_rules.yaml", LAUNCH / "grafana.json"
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: Debian's prometheus has it"
)
OF_PROMETHEUS = {"alertname", "alertstate", "instance", "job", "le"}


def rules():
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def boards():
    """The expressions of the dashboard, with values for its variables."""
    board = json.loads(BOARD.read_text())
    found = [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]
    found += [each["expr"] for each in board["annotations"]["list"]]
    found += [each["definition"] for each in board["templating"]["list"] if "definition" in each]
    return found


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_promtool
def test_the_rules_are_valid_and_fire_when_they_should():
    promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool(
        "test", "rules", Path(__file__).with_name("prometheus_rules_test.yaml")
    )


@needs_promtool
def test_the_example_config_is_valid():
    promtool("check", "config", LAUNCH / "prometheus.yaml")


def test_each_alert_is_tested_both_ways():
    tests = yaml.safe_load(Path(__file__).with_name("prometheus_rules_test.yaml").read_text())
    fires, silent = set(), set()
    for each in (case for test in tests["tests"] for case in test.get("alert_rule_test", ())):
        (fires if each.get("exp_alerts") else silent).add(each["alertname"])
    assert fires == silent == {rule["alert"] for rule in rules() if "alert" in rule}


def test_all_that_is_named_exists(told):
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    expressions = [rule["expr"] for rule in rules()] + boards()
    named = {name for each in expressions for name in re.findall(r"\bmdlm[_:][\w:]+", each)}
    assert named <= told.keys() | recorded and len(named) > 20
    assert recorded <= named  # none is computed for nobody
    outcomes = {
        outcome
        for each in expressions
        for given in re.findall(r'outcome[!=~]+"([\w|]+)"', each)
        for outcome in given.split("|")
    }
    assert outcomes <= {*metrics.OUTCOMES} and len(outcomes) > 3


def test_labels_that_are_named_exist(told):
    """Of each metric those that its own selector names."""
    checked = 0
    for each in [rule["expr"] for rule in rules()] + boards():
        for name, given in re.findall(r"\b(mdlm_\w+)\{([^}]*)\}", each):
            labels = {*re.findall(r"(\w+)\s*[!=~]+\"", given)}
            assert labels <= told[name] | OF_PROMETHEUS, each
            checked += len(labels)
        grouped = {
            label.strip() for by in re.findall(r"\bby \(([^)]*)\)", each) for label in by.split(",")
        }
        names = re.findall(r"\bmdlm_\w+", each)
        if names:
            assert grouped <= set.union(*(told[name] for name in names)) | OF_PROMETHEUS, each
    assert checked > 20


@needs_promtool
def test_the_expressions_of_the_dashboard_can_be_computed(tmp_path):
    """As rules, whose expressions promtool reads."""
    made = []
    for each in boards():
        for name, value in (("$__rate_interval", "5m"), ("$job", ".*"), ("$instance", ".*")):
            each = each.replace(name, value)
        if not each.startswith("label_values"):
            made.append({"record": f"panel_{len(made)}", "expr": each})
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "panels", "rules": made}]})
    )
    assert f"{len(made)} rules found" in promtool("check", "rules", tmp_path / "rules.yaml")


def test_the_dashboard_is_laid_out_and_told():
    board = json.loads(BOARD.read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or (panel["description"] and panel["datasource"])


def test_the_page_tells_of_each_metric_and_of_each_alert(told):
    page = (LAUNCH.parent / "docs" / "watching.md").read_text()
    names = {re.sub("_(bucket|count|sum)$", "", name) for name in told if name.startswith("mdlm")}
    named = [name for rule in rules() for kind, name in rule.items() if kind == "alert"]
    assert {name for name in (*names, *named) if f"`{name}" not in page} == set()
    known = {*names, *named, *(rule.get("record") for rule in rules())}
    assert {*re.findall(r"`(mdlm[_:]\w[\w:]*|Mdlm\w+)", page)} <= known | {"mdlm_jax"}
