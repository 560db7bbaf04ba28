"""The corpora that are known by name."""

from pathlib import Path

from mdlm_jax.data.corpora import english, wikipedia
from mdlm_jax.data.corpora.documents import Corpus, Document


def _read_wikipedia_summaries(cache_dir: Path) -> dict[str, list[Document]]:
    # TensorFlow Datasets takes most of a second to import, and only a cold cache needs it.
    from mdlm_jax.data.corpora import wikipedia_builder

    splits = wikipedia_builder.read_splits(cache_dir / "tfds")
    return {name: [Document(*pair) for pair in pairs] for name, pairs in splits.items()}


# A corpus of one's own is one more entry: `data.SOURCES["mine"] = data.Corpus(...)`.
SOURCES: dict[str, Corpus] = {
    "wikipedia_summaries": Corpus(
        version=wikipedia.VERSION,
        license=wikipedia.LICENSE,
        label_names=wikipedia.TOPICS,
        read=_read_wikipedia_summaries,
    ),
    "english": Corpus(
        version=english.VERSION,
        license=english.LICENSE,
        label_names=english.KINDS,
        read=lambda cache_dir: english.read_splits(),
    ),
}
