"""LLaDA's 8B bidirectional encoder, on one pod of TPUs or several.

    python -m mdlm_jax.train --config=llada_8b --workdir=runs/llada_8b

On a pod the workdir is a bucket's: --workdir=gs://BUCKET/llada_8b. Compiled for the chips, without
any: 12.6 of 15.75 GiB of a v5e chip, at least 2.7 s a step; docs/pods.md has the table.

    python -m mdlm_jax.compile_check --config=llada_8b --topology=v5e:16x16
    python -m mdlm_jax.compile_check --config=llada_8b --topology=v6e:16x16
    python -m mdlm_jax.compile_check --config=llada_8b --topology=v5p:4x4x8
    python -m mdlm_jax.compile_check --config=llada_8b --topology=v5e:16x16 \
        --slices=2 --config.training.batch_size=1024

This config was never trained.

The text: files `openwebtext/*.jsonl.gz`, as the config `owt` wants them, in the folder that the
command runs in. That is 9 billion tokens, too few for this model: give it more with
--config.data.files=GLOB, gs:// too.

Follows LLaDA 8B (Nie et al. 2025, section 2.2 and appendix B): 32 blocks of width 4096, 32 heads of
128, gated SiLU MLPs of width 12,288, RMSNorm, RoPE, no biases, no dropout, no time conditioning, a
vocabulary of 126,464; rows of 4096 tokens; AdamW with weight decay 0.1, learning rate 4e-4 after
2,000 steps of warm-up.

Differs: input and output embeddings are one table, behind BERT's head (LLaDA: two tables, half a
billion parameters more); RoPE's base is 10,000 (LLaDA: 500,000); 512 rows a step (LLaDA: 1280); a
cosine decay (LLaDA: in two stages); exact mask counts; the tokenizer is a byte-level BPE trained on
this text. 7,514,365,952 parameters.
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
    config.data.length = 4096

    config.model.layers = 32
    config.model.width = 4096
    config.model.heads = 32
    config.model.mlp_width = 12288
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
    config.model.remat = "full"

    config.mesh.fsdp = 32

    config.optimizer.learning_rate = 4e-4
    config.optimizer.warmup_steps = 2_000
    config.optimizer.decay = "cosine"
    config.optimizer.final_fraction = 0.1
    config.optimizer.weight_decay = 0.1

    config.training.batch_size = 512
    config.training.steps = 1_000_000
    config.training.ema_decay = 0.9999
    config.training.save_every = 1_000

    config.evaluation.rows = 1024
    config.evaluation.batch_size = 256
    config.evaluation.sample_steps = 256
    return config
