"""The default corpus as a TensorFlow Datasets builder. Needs no TensorFlow."""

import contextlib
import io
from pathlib import Path

import tensorflow_datasets as tfds

from mdlm_jax.data.corpora import wikipedia


class WikipediaSummaries(tfds.core.GeneratorBasedBuilder):
    """Lead sections of English Wikipedia articles with their topics (text: CC BY-SA 4.0)."""

    VERSION = tfds.core.Version(wikipedia.VERSION)
    # Nothing is downloaded. (TFDS would look for a list of addresses beside this file, and for that
    # imports `importlib_resources`, which it does not install.)
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Lead sections of 10,033 articles of the English Wikipedia, by topic. "
            + wikipedia.LICENSE,
            features=tfds.features.FeaturesDict(
                {
                    "text": tfds.features.Text(),
                    "title": tfds.features.Text(),
                    "topic": tfds.features.ClassLabel(names=wikipedia.TOPICS),
                }
            ),
            homepage="https://en.wikipedia.org",
            license=wikipedia.LICENSE,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # The text is a file of an installed package.
        articles = wikipedia.load_summaries()
        return {split: self._generate_examples(articles, split) for split in wikipedia.SPLITS}

    def _generate_examples(self, articles, split):
        for article in articles:
            title = article["title"]
            if wikipedia.split_of(title) == split:
                yield title, {"text": article["extract"], "title": title, "topic": article["topic"]}


def prepare_quietly(builder: tfds.core.DatasetBuilder) -> None:
    """`builder.download_and_prepare()` without its progress bars, its chatter or the network."""
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=config)


def read_splits(tfds_dir: Path) -> dict[str, list[tuple[str, int]]]:
    """`(text, topic)` of every article by split, through the TFDS dataset kept in `tfds_dir`."""
    builder = WikipediaSummaries(data_dir=tfds_dir, file_format="array_record")
    prepare_quietly(builder)
    return {
        split: [(row["text"].decode("utf-8"), int(row["topic"])) for row in source]
        for split, source in (
            (name, builder.as_data_source(split=name)) for name in wikipedia.SPLITS
        )
    }
