"""Lets the tests of this folder import their helpers, and gives them a state."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def state():
    import toy_regression

    return toy_regression.state()
