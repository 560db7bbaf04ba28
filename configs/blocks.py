"""The quickstart in blocks of 8 tokens: block diffusion, which writes after a cache.

    python -m mdlm_jax.train --config=blocks --workdir=runs/blocks

1,338,112 parameters. 5 min 51 s on 2 CPU cores, evaluation and samples in it. NELBO 4.87 nats per
token of the test split, 1.13 a character, where the quickstart, of as many parameters and steps,
has 5.16 and the trigram 4.92 (shared x86-64 machine, jax 0.10.2, 2026-11-26).
"""

from mdlm_jax.configs import quickstart


def get_config():
    config = quickstart.get_config()

    config.objective.name = "block"
    config.objective.block_size = 8
    # A block sees the two before it, for the reason that the quickstart's attention is local.
    config.objective.window = 16
    config.model.attention = "full"
    config.model.window = 0
    return config
