"""What the site makes of the code and of the pages that lie beside `docs/`."""

import importlib.util
from pathlib import Path

import pytest

from mdlm_jax.runs.experiment import default_config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_key_stands_in_the_configuration_reference_with_its_default(hooks):
    found = hooks.sections()  # refuses a key that no docstring describes
    config = default_config().to_dict()
    nested = {name: keys for name, keys in config.items() if isinstance(keys, dict)}
    nested[""] = {key: value for key, value in config.items() if not isinstance(value, dict)}
    defaults = {name: {k: v for k, (v, _) in keys.items()} for name, keys in found.items()}
    assert defaults == nested
    assert all(len(text) > 5 for keys in found.values() for _, text in keys.values())
    page = hooks.configuration()
    for name, keys in nested.items():
        assert f"## {name}" in page
        assert all(f"\n| `{key}`" in page for key in keys)


def test_links_out_of_the_folder_become_links_between_pages(hooks):
    text = "[a](docs/pods.md#x) [b](launch/README.md#data) [c](configs/owt.py) [d](https://x.y/z)"
    assert hooks._relinked(text, Path()) == (
        "[a](pods.md#x) [b](launching.md#data) c [d](https://x.y/z)"
    )
    assert hooks._relinked("[b](../launch/README.md) [e](#here)", Path("docs")) == (
        "[b](launching.md) [e](#here)"
    )


def test_the_page_of_claims_lists_this_test(hooks):
    page = hooks.claims()
    assert "### `test_site.py`" in page and "- the page of claims lists this test\n" in page
    assert "### `diffusion/test_objectives.py`" in page
