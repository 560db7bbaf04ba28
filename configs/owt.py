"""MDLM's and MD4's OpenWebText: web pages in byte-pair tokens, packed into rows of 1024.

    python -m mdlm_jax.train --config=owt --workdir=runs/owt

With XLA's attention its step takes 2.0 s on one H200 with --config.training.accumulation=16 (random
tokens, jax 0.11.2, 2026-11-22): 23.5 days for the run, 258,000 tokens/s, 44 GiB. With cuDNN's,
which it takes by itself, the step of docs/performance.md, without dropout and QK-norm, is twice as
fast; with them it was not timed. This config was never trained.

The text: 8 million web pages (40 GB) as files `openwebtext/*.jsonl.gz` in the folder that the
command runs in, each line a JSON object with the page in its field "text": the form in which most
copies of the corpus are kept (such as `Skylion007/openwebtext` on the Hugging Face hub, written out
with `dataset.to_json`). Other files: --config.data.files=GLOB.

Follows MDLM (Sahoo et al. 2024; kuleshov-group/mdlm, `configs/` with data=openwebtext-split,
model=small): 12 blocks of width 768 with 12 heads, MLPs of width 3072, dropout 0.1, no time
conditioning; rows of 1024 tokens, 512 of them a step, 1,000,000 steps; AdamW with b2 0.999, no
weight decay, learning rate 3e-4 after 2,500 steps of warm-up; gradient clipped at 1; EMA 0.9999.
124,179,456 parameters. (MD4's has adaLN time conditioning, no dropout, and a cosine decay.)

Differs: the tokenizer is a byte-level BPE of GPT-2's size, trained on this text (GPT-2's own has no
mask, so perplexities per token are not quite the same unit); exact mask counts for antithetic
times; QK-norm and RMSNorm; input and output embeddings are one table, behind BERT's head; half a
percent of the pages each are validation and test (MDLM: the last 100,000 pages, 1.2 %, are
validation).
"""

from mdlm_jax.experiment import default_config


def get_config():
    config = default_config()

    config.data.source = "text_files"
    config.data.files = "openwebtext/*.jsonl.gz"
    config.data.held_out = 0.005
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 50_257
    config.data.lowercase = False
    config.data.length = 1024

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

    config.evaluation.rows = 512
    config.evaluation.batch_size = 32
    config.evaluation.sample_steps = 256
    return config
