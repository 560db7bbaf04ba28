"""A small masked diffusion BERT on the lead sections of 10,000 English Wikipedia articles.

    python -m mdlm_jax.train --config=quickstart --workdir=runs/quickstart

677,120 parameters. Its steps take 28 seconds on 2 CPU cores, compilation and evaluation left out;
NELBO 5.93 nats per token of the test split, where the unigram has 6.38 and the bigram 4.43
(README.md tells how that was measured).
"""

from mdlm_jax.experiment import default_config


def get_config():
    config = default_config()

    config.data.vocab_size = 2048
    config.data.length = 128

    # Attention within 4 tokens to either side: a small encoder with full attention predicts the
    # unigram for a long while before it finds its neighbours; with a window it finds them at once.
    config.model.layers = 2
    config.model.width = 128
    config.model.heads = 4
    config.model.mlp_width = 512
    config.model.norm_position = "pre"
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-6
    config.model.positions = "rope"
    config.model.qk_norm = True
    config.model.activation = "gelu_tanh"
    config.model.attention = "local"
    config.model.window = 4
    config.model.token_types = 0
    config.model.dropout = 0.0
    config.model.init_scale = 0.06
    config.model.scan = False

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.decay = "linear"
    config.optimizer.final_fraction = 0.02
    config.optimizer.weight_decay = 0.05

    config.training.batch_size = 8
    config.training.steps = 1000
    config.training.ema_decay = 0.99
    config.training.log_every = 50
    config.training.save_every = 250

    config.evaluation.every = 250
    config.evaluation.rows = 128
    config.evaluation.batch_size = 32
    config.evaluation.sample_steps = 32
    return config
