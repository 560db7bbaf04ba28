"""Where compiled programs are kept; that a command keeps them, test_generate.py tests."""

from pathlib import Path

import jax
import pytest

from mdlm_jax.host import compilation


@pytest.fixture(autouse=True)
def _as_before():
    names = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_variable_moves_the_folder_or_turns_it_off(tmp_path, monkeypatch):
    monkeypatch.setenv("MDLM_JAX_CACHE", str(tmp_path))
    default = compilation.folder({})
    assert default.parent == tmp_path / "compiled" and len(default.name) == 12
    assert compilation.folder({"MDLM_JAX_COMPILED": "off"}) is None
    moved = compilation.folder({"MDLM_JAX_COMPILED": "~/kept"})
    assert moved == Path("~/kept").expanduser() / default.name
    assert compilation.folder({}, processes=2) is None
    assert compilation.folder({"MDLM_JAX_COMPILED": "~/kept"}, processes=2) == moved


def test_what_is_said_to_jax_itself_decides(tmp_path, monkeypatch):
    monkeypatch.setenv("MDLM_JAX_COMPILED", str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    assert compilation.keep() == str(tmp_path / "theirs")
    jax.config.update("jax_enable_compilation_cache", False)
    assert compilation.keep() is None and not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_made_ends_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MDLM_JAX_COMPILED", str(tmp_path / "file"))
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    assert compilation.keep() is None and jax.config.jax_compilation_cache_dir is None
