"""Hooks of the site: what is made from the code, and pages of files that lie beside `docs/`.

`mkdocs.yml` names this file. `python docs/hooks.py` prints the configuration reference, `python
docs/hooks.py claims` what the tests claim.
"""

import ast
import dataclasses
import re
import sys
from pathlib import Path

import griffe
from mkdocs.structure.files import File, Files

from mdlm_jax.runs import experiment

ROOT = Path(__file__).parents[1]

# Pages of the site, by the file of the repository that each of them is.
ELSEWHERE = {
    "README.md": "index.md",
    "launch/README.md": "launching.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}

MARK = "<!-- the keys of a config -->"
MARK_OF_CLAIMS = "<!-- the claims of the tests -->"

# What each section of a config is, in the order of the page. The model's is not in `Experiment`'s
# annotations, for the data decide some of its fields.
INTRODUCTIONS = {
    "data": "Which text the run trains on, and how the text becomes rows of tokens.",
    "start": "The checkpoint that a run starts from.",
    "model": "The encoder. The data decide its vocabulary and its length.",
    "objective": "The loss.",
    "optimizer": "AdamW, its schedule, and parts that are slower or frozen.",
    "training": "The length of the run, its seed, and what is saved.",
    "evaluation": "What is measured and shown during training.",
    "mesh": "Devices along each axis of the mesh; -1 takes the rest.",
}


def on_files(files: Files, config) -> Files:
    """Adds the pages that lie beside `docs/`."""
    for source, page in ELSEWHERE.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=_relinked(text, Path(source).parent)))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Points links out of `docs/` at pages of the site, and writes the configuration reference."""
    if page.file.generated_by is None:
        markdown = _relinked(markdown, Path("docs"))
    if MARK in markdown:
        markdown = markdown.replace(MARK, configuration())
    if MARK_OF_CLAIMS in markdown:
        markdown = markdown.replace(MARK_OF_CLAIMS, claims())
    return markdown


def _relinked(text: str, folder: Path) -> str:
    """The links of a file in this folder of the repository, as links between pages of the site.

    A link to a file that is no page (a config, a module) becomes its text.
    """

    def relink(match: re.Match) -> str:
        shown, target, anchor = match.groups(default="")
        path = (ROOT / folder / target).resolve().relative_to(ROOT)
        if path.parts[0] == "docs":
            return f"[{shown}]({path.relative_to('docs')}{anchor})"
        page = ELSEWHERE.get(str(path))
        return f"[{shown}]({page}{anchor})" if page else shown

    link = r"\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)"
    return re.sub(link, relink, text)


def sections() -> dict[str, dict[str, tuple[object, str]]]:
    """Of each section of a config the keys, each with its default and what its docstring says.

    Raises:
      ValueError: a key that no docstring describes; it is named.
    """
    defaults = experiment.default_config().to_dict()
    found = {}
    for name, keys in defaults.items():
        if not isinstance(keys, dict):
            continue
        described = attributes(_dataclass(name))
        missing = [f"{name}.{key}" for key in keys if key not in described]
        if missing:
            raise ValueError(
                f"no docstring describes {', '.join(missing)}: add it to `Attributes:`"
            )
        found[name] = {key: (keys[key], text) for key, text in described.items() if key in keys}
    top = {key: value for key, value in defaults.items() if not isinstance(value, dict)}
    described = attributes(experiment.Experiment)
    missing = [key for key in top if key not in described]
    if missing:
        raise ValueError(f"the docstring of Experiment does not describe {', '.join(missing)}")
    found[""] = {key: (value, described[key]) for key, value in top.items()}
    return found


def attributes(cls: type) -> dict[str, str]:
    """What the docstring of a dataclass says of each attribute, on one line."""
    docstring = griffe.Docstring(cls.__doc__ or "", parser="google")
    options = {"warn_missing_types": False, "warnings": False}
    return {
        item.name: " ".join(item.description.split())
        for part in docstring.parse("google", **options)
        if part.kind is griffe.DocstringSectionKind.attributes
        for item in part.value
    }


def _dataclass(section: str) -> type:
    if section == "model":
        return experiment.bert.Config
    fields = {field.name: field.type for field in dataclasses.fields(experiment.Experiment)}
    kind = fields[section]
    return kind if isinstance(kind, type) else eval(kind, vars(experiment))


def configuration() -> str:
    """The configuration reference: a table a section."""
    lines = []
    found = sections()
    for section in [*INTRODUCTIONS, *(name for name in found if name not in INTRODUCTIONS)]:
        lines += [f"## {section or 'Beside the sections'}", ""]
        if section in INTRODUCTIONS:
            lines += [INTRODUCTIONS[section], ""]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        for key, (value, meaning) in found[section].items():
            resumable = " *" if _may_change(section, key) else ""
            lines.append(f"| `{key}`{resumable} | `{_shown(value)}` | {_cell(meaning)} |")
        lines.append("")
    return "\n".join(lines)


def _may_change(section: str, key: str) -> bool:
    return (
        section in experiment.OPERATIONAL or f"{section}.{key}".strip(".") in experiment.OPERATIONAL
    )


def _shown(value: object) -> str:
    return repr(value) if value != "" else "''"


def _cell(text: str) -> str:
    text = text.replace("|", "\\|").replace("*", "\\*")
    return text[:1].upper() + text[1:]


def claims() -> str:
    """What the tests claim: for each file of tests their names, as sentences."""
    lines = ["## Every claim", ""]
    files = sorted((ROOT / "tests").rglob("test_*.py"), key=lambda path: (path.parent, path.name))
    for path in files:
        tree = ast.parse(path.read_text())
        names = [
            node.name.removeprefix("test_").replace("_", " ")
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        about = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
        if names:
            place = path.relative_to(ROOT / "tests")
            lines += [f"### `{place}`", "", about, "", *(f"- {name}" for name in names), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(claims() if sys.argv[1:] == ["claims"] else configuration())
