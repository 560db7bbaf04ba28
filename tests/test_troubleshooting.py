"""The messages that the page on troubleshooting quotes are messages of the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()

# What others say, or no message.
THEIRS = {"RESOURCE_EXHAUSTED", "TypeError"}


def written(node) -> str:
    """A string of the code, `...` for what is put in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else "..."
    return "".join(map(written, node.values)) if isinstance(node, ast.JoinedStr) else "..."


def messages():
    for path in (ROOT / "mdlm_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant | ast.JoinedStr):
                yield " ".join(written(node).split())
    for path in (ROOT / "launch").glob("*.sh"):
        yield from path.read_text().splitlines()


def quoted():
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            for message in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
                if message not in THEIRS and "custom_vjp" not in message:
                    yield message


@pytest.fixture(scope="module")
def said():
    return "\n".join(messages())


@pytest.mark.parametrize("message", list(quoted()))
def test_a_quoted_message_is_one_of_the_code(message, said):
    parts = [part for part in re.split(r"\.\.\.", message.removeprefix("error: ")) if part.strip()]
    assert parts
    for part in parts:
        assert part.strip(" ()[]") in said, f"no message of the code holds {part!r}"
