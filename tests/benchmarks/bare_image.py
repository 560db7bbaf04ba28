"""Run by itself: imports every JAX benchmark where the data's packages are missing."""

import sys

MISSING = (
    *("grain", "tensorflow_datasets", "ml_collections", "torch", "tokenizers", "jinja2", "fsspec"),
    *("matplotlib", "scipy", "array_record", "transformers"),
)
sys.modules.update(dict.fromkeys(MISSING))

from benchmarks import attention, memory, sample, serving, stream_attention, train_step  # noqa: E402

for module in (attention, memory, sample, serving, stream_attention, train_step):
    assert callable(module.main)
print("all imported")
