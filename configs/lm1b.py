"""MDLM's One Billion Words: sentences in BERT's word pieces, one a row of 128.

    python -m mdlm_jax.train --config=lm1b --workdir=runs/lm1b

With XLA's attention its step takes 0.14 s on one H200 (random tokens without padding, jax 0.11.2,
2026-11-22): 1.6 days for the run, 466,000 tokens/s, 36 GiB. With cuDNN's, which it takes by itself,
it was not timed. This config was never trained.

The text, once (1.7 GB to download; TensorFlow Datasets, extra `tfds-build`):

    tfds build lm1b --file_format=array_record

Follows MDLM (Sahoo et al. 2024; kuleshov-group/mdlm, `configs/` with data=lm1b, model=small): 12
blocks of width 768 with 12 heads, MLPs of width 3072, dropout 0.1, no time conditioning; BERT's
uncased vocabulary, one sentence a row, cut or padded to 128 tokens, 512 of them a step, 1,000,000
steps; AdamW with b2 0.999, no weight decay, learning rate 3e-4 after 2,500 steps of warm-up;
gradient clipped at 1; EMA 0.9999. 109,040,640 parameters.

Differs: padding is neither masked nor attended to (MDLM does both; neither counts it in the loss);
a sentence ends in [SEP] and has no [CLS]; exact mask counts for antithetic times; QK-norm and
RMSNorm; input and output embeddings are one table, behind BERT's head; half a percent of the
training sentences are validation, and TFDS's test split is the test (MDLM: it is validation).
"""

from mdlm_jax.experiment import default_config


def get_config():
    config = default_config()

    config.data.source = "lm1b"
    config.data.held_out = 0.005
    config.data.tokenizer = "google-bert/bert-base-uncased"
    config.data.vocab_size = 30_522
    config.data.length = 128
    config.data.rows = "padded"

    config.model.norm_position = "pre"
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-6
    config.model.positions = "rope"
    config.model.qk_norm = True
    config.model.activation = "gelu_tanh"
    config.model.use_bias = False
    config.model.token_types = 0
    config.model.dropout = 0.1
    config.model.vocab_multiple = 128
    config.model.dtype = "bfloat16"
    config.model.scan = False

    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 2_500
    config.optimizer.decay = "constant"
    config.optimizer.weight_decay = 0.0
    config.optimizer.b2 = 0.999

    config.training.batch_size = 512
    config.training.steps = 1_000_000
    config.training.ema_decay = 0.9999

    config.evaluation.rows = 2048
    config.evaluation.sample_steps = 128
    return config
