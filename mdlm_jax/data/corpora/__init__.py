"""Where documents come from.

| module | what it holds |
|---|---|
| `documents` | what a corpus is: documents in named splits |
| `sources` | the corpora that are known by name |
| `text_files` | files of text, JSON lines and tables |
| `tables` | Parquet and Arrow files |
| `saved_datasets` | folders that Hugging Face `datasets` saved |
| `tfds_datasets` | datasets of TensorFlow Datasets |
| `english` | articles, speeches and recipes, as files of three packages |
| `wikipedia` | the default corpus |
| `wikipedia_builder` | the default corpus as a TensorFlow Datasets builder |
| `holding_out` | splits that a corpus does not bring, taken out of its training documents |
| `chat` | chat templates: from messages to a prompt and its response |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)
