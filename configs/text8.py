"""MD4's and MDLM's text8: characters of an English Wikipedia dump of 2006, in rows of 256.

    python -m mdlm_jax.train --config=text8 --workdir=runs/text8

Its step takes 0.26 s on one H200 with --config.training.accumulation=2 (random tokens, XLA
attention, jax 0.11.2, 2026-11-22): 3.0 days for the run, 499,000 tokens/s, 43 GiB. The run was not
made.

The text, once, in the folder that the command runs in (100 MB; the last 10 MB are validation and
test, as everyone splits it):

    curl -O http://mattmahoney.net/dc/text8.zip && unzip -p text8.zip > text8.txt

Follows MD4 (Shi et al. 2024; md4/configs/md4/text8.py of google-deepmind/md4 with the values that
its sweep sets): 12 blocks of width 768 with 12 heads, gated MLPs of width 2048, adaLN time
conditioning, dropout 0.05, no biases; rows of 256 characters, 512 of them a step, 1,000,000 steps;
AdamW with b2 0.999, weight decay 0.03, learning rate 5e-4 after 2,000 steps of warm-up and then a
cosine to 0; EMA 0.9999. 130,003,968 parameters.

Differs: exact mask counts for antithetic times; QK-norm; input and output embeddings are one table,
behind BERT's head; the gradient is clipped at 1 (MD4 does not clip). The five special tokens stand
beside the 27 characters and are not in the text, but for one separator at its end. Likelihoods are
in nats per character: `bits_per_token` is the literature's bits per character.
"""

from mdlm_jax.experiment import default_config


def get_config():
    config = default_config()

    config.data.source = "text_files"
    config.data.files = "text8.txt"
    config.data.split_by = "position"
    config.data.held_out = 0.05
    config.data.tokenizer = "characters"
    config.data.vocab_size = 32
    config.data.length = 256

    config.model.norm_position = "pre"
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-6
    config.model.positions = "rope"
    config.model.qk_norm = True
    config.model.gated = True
    config.model.activation = "silu"
    config.model.mlp_width = 2048
    config.model.time_conditioning = True
    config.model.use_bias = False
    config.model.token_types = 0
    config.model.dropout = 0.05
    config.model.dtype = "bfloat16"
    config.model.scan = False

    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 2_000
    config.optimizer.decay = "cosine"
    config.optimizer.final_fraction = 0.0
    config.optimizer.weight_decay = 0.03
    config.optimizer.b2 = 0.999

    config.training.batch_size = 512
    config.training.steps = 1_000_000
    config.training.ema_decay = 0.9999

    config.evaluation.rows = 1024
    config.evaluation.sample_steps = 256
    return config
