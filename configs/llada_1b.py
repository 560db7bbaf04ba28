"""A bidirectional encoder of 1.4 billion weights on a pod of TPUs: LLaDA's design, smaller.

    python -m mdlm_jax.train --config=llada_1b --workdir=runs/llada_1b

On a pod the workdir is a bucket's: --workdir=gs://BUCKET/llada_1b. Compiled for the chips, without
any: 13.4 of 15.75 GiB of a v5e chip, at least 0.37 s a step; docs/pods.md has the table.

    python -m mdlm_jax.compile_check --config=llada_1b --topology=v5e:16x16
    python -m mdlm_jax.compile_check --config=llada_1b --topology=v6e:16x16
    python -m mdlm_jax.compile_check --config=llada_1b --topology=v5p:4x4x8

This config was never trained.

The text: files `openwebtext/*.jsonl.gz`, as the config `owt` wants them, in the folder that the
command runs in. That is 9 billion tokens, too few for this model: give it more with
--config.data.files=GLOB, gs:// too.

LLaDA's design (Nie et al. 2025) with 22 blocks of width 2048, 32 heads of 64, gated SiLU MLPs of
width 5632, RMSNorm, RoPE, no biases, no dropout, no time conditioning, a vocabulary of 126,464;
rows of 2048 tokens, 1024 of them a step. What differs from LLaDA is told in the config `llada_8b`.
1,393,651,712 parameters.
"""

from mdlm_jax.experiment import default_config


def get_config():
    config = default_config()

    config.data.source = "text_files"
    config.data.files = "openwebtext/*.jsonl.gz"
    config.data.held_out = 0.005
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 126_464
    config.data.lowercase = False
    config.data.length = 2048

    config.model.layers = 22
    config.model.width = 2048
    config.model.heads = 32
    config.model.mlp_width = 5632
    config.model.norm_position = "pre"
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-5
    config.model.positions = "rope"
    config.model.gated = True
    config.model.activation = "silu"
    config.model.use_bias = False
    config.model.token_types = 0
    config.model.dropout = 0.0
    config.model.dtype = "bfloat16"
    config.model.attention_backend = "splash"
    config.model.remat = "dots"

    config.mesh.fsdp = 16

    config.optimizer.learning_rate = 4e-4
    config.optimizer.warmup_steps = 2_000
    config.optimizer.decay = "cosine"
    config.optimizer.final_fraction = 0.1
    config.optimizer.weight_decay = 0.1

    config.training.batch_size = 1024
    config.training.steps = 1_000_000
    config.training.ema_decay = 0.9999
    config.training.save_every = 1_000

    config.evaluation.rows = 1024
    config.evaluation.batch_size = 256
    config.evaluation.sample_steps = 256
    return config
