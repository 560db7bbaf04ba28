"""Parts of the parameters by name, and how deep each lies."""

import dataclasses

import jax
import numpy as np
import pytest
from networks.tiny import BASE

from mdlm_jax.networks import bert


def by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@pytest.mark.parametrize(
    ("parts", "prefixes"),
    [
        (["embeddings"], ["encoder/embeddings/"]),
        (["blocks/mlp", "head"], ["encoder/blocks/mlp/", "head/"]),  # and not mlp_norm
        (["embeddings/positions"], ["encoder/embeddings/positions"]),
        ([], []),
    ],
)
def test_parts_are_chosen_by_name(parts, prefixes):
    chosen = by_path(bert.select(BASE, parts))
    assert chosen.keys() == by_path(shapes(BASE)).keys()
    for name, choice in chosen.items():
        assert choice == name.startswith(tuple(prefixes)), name


@pytest.mark.parametrize("part", ["embedings", "block", "blocks/ml", "encoder", ""])
def test_a_name_of_nothing_is_refused(part):
    with pytest.raises(
        ValueError, match=rf"'{part}' names no parameters: .*blocks, embeddings, hea"
    ):
        bert.select(BASE, ["head", part])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "norm_position": "pre",
            "positions": "rope",
            "time_conditioning": True,
            "classes": 2,
            "token_types": 0,
        },
    ],
)
def test_the_distance_counts_blocks(changes):
    config = dataclasses.replace(BASE, layers=3, **changes)
    distances, sizes = by_path(bert.distance_to_head(config)), by_path(shapes(config))
    assert distances.keys() == sizes.keys()
    for name, distance in distances.items():
        np.broadcast_to(distance, sizes[name].shape)
        if "/blocks/" in name:
            assert distance.ravel().tolist() == [3, 2, 1] and distance.shape[0] == 3
        else:
            above = name.startswith(("head/", "encoder/final_"))
            assert distance.shape == () and distance == (0 if above else 4), name


def shapes(config):
    return jax.eval_shape(lambda: bert.init(jax.random.key(0), config))
