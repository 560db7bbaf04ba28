"""BERT-base, pretrained, trained on over all mask rates: a BERT that writes.

    python -m mdlm_jax.train --config=adapt_bert --workdir=runs/adapt_bert

Starts from google-bert/bert-base-uncased (a download of 440 MB, once); another checkpoint, its
tokenizer with it, is --config.start.checkpoint=FOLDER_OR_NAME. docs/adapting.md tells what else can
be set, and what to compare with.

12 blocks of width 768, 109,514,298 parameters; lead sections of English Wikipedia articles in rows
of 128 tokens. For the first 1,000 steps the highest mask rate rises from BERT's 15 % to 1; the
learning rate falls by 0.9 from each block to the one below. This config was never trained.
"""

from mdlm_jax.experiment import default_config


def get_config():
    config = default_config()

    config.start.checkpoint = "google-bert/bert-base-uncased"

    # A tokenizer of its own may be given: then the vocabulary is resized.
    config.data.tokenizer = config.start.get_oneway_ref("checkpoint")
    config.data.vocab_size = 30_522
    config.data.length = 128

    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.scan = False

    config.objective.curriculum_steps = 1_000
    config.objective.curriculum_rate = 0.15

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 500
    config.optimizer.decay = "linear"
    config.optimizer.layer_decay = 0.9

    config.training.batch_size = 64
    config.training.steps = 5_000
    config.training.ema_decay = 0.999
    config.training.save_every = 1_000

    config.evaluation.every = 500
    return config
