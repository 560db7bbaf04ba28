"""BERT-large as a masked diffusion model, on 64 chips of TPU v5e.

    python -m mdlm_jax.train --config=bert_large_v5e --workdir=runs/bert_large_v5e

Whether it fits the chips, without any:

    python -m mdlm_jax.compile_check --config=bert_large_v5e --topology=v5e:8x8

It does: 5.9 of 15.75 GiB of a chip, at least 88 ms a step. This config was never trained.

The text: 8 million web pages as files `openwebtext/*.jsonl.gz`, as the config `owt` wants them, in
the folder that the command runs in. Other files: --config.data.files=GLOB.

Follows BERT (Devlin et al. 2019): 24 blocks of width 1024 with 16 heads, MLPs of width 4096,
layer norms behind the residual sums, learned positions, exact GELU, dropout 0.1; its uncased word
pieces, rows of 512; AdamW with weight decay 0.01, learning rate 1e-4 after 10,000 steps of
warm-up, then a linear decay over 1,000,000 steps. 335,244,160 parameters.

Differs: trained over all mask rates (masked diffusion) with exact mask counts, on packed rows
without token types or next-sentence pairs; 1024 rows a step (BERT: 256); bfloat16; EMA 0.9999; the
gradient is clipped at 1; the vocabulary is padded to a multiple of 128.
"""

from mdlm_jax.experiment import default_config


def get_config():
    config = default_config()

    config.data.source = "text_files"
    config.data.files = "openwebtext/*.jsonl.gz"
    config.data.held_out = 0.005
    config.data.tokenizer = "google-bert/bert-base-uncased"
    config.data.vocab_size = 30_522
    config.data.length = 512

    config.model.layers = 24
    config.model.width = 1024
    config.model.heads = 16
    config.model.mlp_width = 4096
    config.model.token_types = 0
    config.model.dropout = 0.1
    config.model.vocab_multiple = 128
    config.model.dtype = "bfloat16"
    config.model.attention_backend = "splash"
    config.model.remat = "dots"

    config.mesh.fsdp = 8

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 10_000
    config.optimizer.decay = "linear"
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.999

    config.training.batch_size = 1024
    config.training.steps = 1_000_000
    config.training.ema_decay = 0.9999

    config.evaluation.rows = 1024
    config.evaluation.sample_steps = 128
    return config
