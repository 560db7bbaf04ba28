"""The README's Python blocks, run in order as one program."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

pytestmark = pytest.mark.slow

README = Path(__file__).parents[1] / "README.md"


def test_the_blocks_run_and_give_finite_losses(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 4  # the pure functions, Linen, NNX, Equinox
    names = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
        leaves = jax.tree.leaves(names.pop("gradient"))
        assert leaves and all(jnp.isfinite(leaf).all() for leaf in leaves)
        assert any(jnp.any(leaf != 0) for leaf in leaves)
    assert jnp.isfinite(names["bert_loss"]) and jnp.isfinite(names["loss_value"])
    filled, tokens = names["filled"], names["tokens"]
    assert jnp.array_equal(filled[:, :4], tokens[:, :4]) and jnp.all(filled != names["MASK"])
    assert "nats per token" in capsys.readouterr().out
