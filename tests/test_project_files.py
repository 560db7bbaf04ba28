"""The files that stand around the package say what is true of it."""

import re
import tomllib
from pathlib import Path

import yaml

import mdlm_jax
from mdlm_jax import moved

ROOT = Path(__file__).parents[1]


def test_every_file_states_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == str(citation["version"]) == mdlm_jax.__version__
    assert f"## {mdlm_jax.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == project["license"]


def test_the_changelog_names_every_module_that_moved():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    rows = re.findall(r"^\| (`mdlm_jax\..*?) \| `mdlm_jax\.(.*?)` \|$", changelog, re.MULTILINE)
    said = {}
    for names, home in rows:
        for name in re.findall(r"`(?:mdlm_jax\.)?(\w+)`", names):
            said[name] = home.replace("*", name)
    assert said == {k: v for k, v in moved.HOMES.items() if k not in moved.MATHEMATICS}


def test_the_workflow_runs_the_check_under_every_python_that_is_declared():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert {"run": "bash .ci/run"} in workflow["jobs"]["check"]["steps"]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    declared = [c.rpartition(" ")[2] for c in classifiers if c.startswith("Programming Language")]
    assert workflow["jobs"]["pythons"]["strategy"]["matrix"]["python"] == declared


def test_the_hooks_and_templates_can_be_read():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    checked = (ROOT / ".ci/run").read_text()
    for hook in hooks:
        assert hook["entry"].split()[0] in checked, hook["id"]
    for template in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(template.read_text()), template


def test_the_installation_page_lists_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    page = (ROOT / "docs/installation.md").read_text()
    rows = "".join(line for line in page.splitlines() if line.startswith("| `"))
    assert [extra for extra in extras if f"`{extra}`" not in rows] == []
