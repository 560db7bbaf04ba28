"""A small dataset of TensorFlow Datasets."""

import numpy as np
import tensorflow_datasets as tfds

from mdlm_jax.data.corpora.wikipedia_builder import prepare_quietly

KINDS = ("quiet", "loud")


class Sayings(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")
    url_infos = None

    def _info(self):
        fields = {
            "text": tfds.features.Text(),
            "kind": tfds.features.ClassLabel(names=KINDS),
            "year": tfds.features.Scalar(np.int64),
            "speaker": tfds.features.Text(),
            "words": tfds.features.Sequence(tfds.features.Text()),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(fields), license="public domain"
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(300), "validation": self._generate_examples(30)}

    def _generate_examples(self, count):
        for i in range(count):
            text = f"saying number {i}, as it was said by {i % 4} of them"
            yield (
                i,
                {
                    "text": text,
                    "kind": i % 2,
                    "year": [1990, 200][i % 2],
                    "speaker": f"s{i % 3}",
                    "words": text.split(),
                },
            )


def store(folder):
    """Leaves it in a folder, as ArrayRecord."""
    prepare_quietly(Sayings(data_dir=folder, file_format="array_record"))
