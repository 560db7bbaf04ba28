"""A small masked diffusion BERT on the lead sections of 10,000 English Wikipedia articles.

    python -m mdlm_jax.train --config=quickstart --workdir=runs/quickstart

1,338,112 parameters, 4.9 M tokens. NELBO 5.16 nats per token of the test split, 1.20 a character,
where the unigram has 6.90 and the bigram 5.14 (README.md has the table, and the times).
"""

from mdlm_jax.experiment import default_config


def get_config():
    config = default_config()

    config.data.vocab_size = 8192
    config.data.length = 128

    # Attention within 16 tokens to either side: a small encoder with full attention predicts the
    # unigram for longer before it finds its neighbours.
    config.model.layers = 2
    config.model.width = 128
    config.model.heads = 4
    config.model.mlp_width = 256
    config.model.norm_position = "pre"
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-6
    config.model.positions = "rope"
    config.model.qk_norm = True
    config.model.activation = "gelu_tanh"
    config.model.attention = "local"
    config.model.window = 16
    config.model.token_types = 0
    config.model.dropout = 0.0
    config.model.init_scale = 0.03
    config.model.scan = False

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-2
    config.optimizer.matrix_learning_rate = 7e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.decay = "linear"
    config.optimizer.final_fraction = 0.02
    config.optimizer.weight_decay = 0.05

    config.training.batch_size = 16
    config.training.steps = 2400
    config.training.ema_decay = 0.99
    config.training.log_every = 100
    config.training.save_every = 800

    config.evaluation.every = 800
    config.evaluation.rows = 128
    config.evaluation.batch_size = 32
    config.evaluation.sample_steps = 32
    return config
