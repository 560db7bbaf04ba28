"""Which tiles of two streams a kernel visits, against who sees whom, pair by pair."""

import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax.networks.attention.layout import Streams, count, pick
from mdlm_jax.networks.attention.stream_kernels import Plan, Tile

# Each with sizes of the tiles that walk, and of those that they visit.
CASES = [
    (Streams(48, 3), 16, 16),
    (Streams(48, 3), 32, 16),
    (Streams(48, 3), 16, 32),
    (Streams(40, 8), 16, 16),
    (Streams(32, 32), 16, 16),
    (Streams(33, 1), 16, 16),
    (Streams(72, 24), 16, 16),
    (Streams(66, 33), 32, 16),
    (Streams(96, 6, 30), 16, 16),
    (Streams(96, 6, 30), 16, 32),
    (Streams(64, 4, 4), 16, 16),
]


def visited(walk, stream):
    """The tiles of a stream that a walk visits: as edges, and as wholes."""
    found = []
    for runs in walk:
        tiles = [pick(runs, jnp.int32(i)) for i in range(int(count(runs)))] if runs else []
        found.append([int(tile) for clean, tile in tiles if int(clean) == stream])
    return found


def expected(seen, size):
    """The tiles of columns of which some are seen, and those of which all are, and are there."""
    tiles = range(-(-seen.shape[1] // size))
    parts = [seen[:, tile * size : (tile + 1) * size] for tile in tiles]
    some = [tile for tile in tiles if parts[tile].any()]
    return some, [tile for tile in some if parts[tile].all() and parts[tile].shape[1] == size]


@pytest.mark.parametrize("by", ["queries", "keys"])
@pytest.mark.parametrize(("layout", "own", "other"), CASES, ids=str)
def test_tiles_are_visited_once_and_masked_where_some_is_not_seen(layout, own, other, by):
    seen = layout.sees(*np.ogrid[: layout.both, : layout.both])
    others = np.split(seen if by == "queries" else seen.T, [layout.length], axis=1)
    cut = Tile(own, other) if by == "queries" else Tile(other, own)
    for masks in (False, True):
        plan = Plan(layout, cut, both=True, masks=masks, scale=1.0, interpret=True)
        for stream, length in enumerate((layout.length, layout.clean)):
            rows = [part[stream * layout.length :][:length] for part in others]
            for number in range(-(-length // own)):
                tile = plan.at(jnp.int32(stream), jnp.int32(number), own)
                assert int(tile.last) == min((number + 1) * own, length) - 1
                walk = plan.keys_of(tile) if by == "queries" else plan.queries_of(tile)
                for which, part in enumerate(rows):
                    edges, wholes = visited(walk, which)
                    some, all_ = expected(part[number * own : (number + 1) * own], other)
                    assert sorted(edges + wholes) == some
                    assert wholes == ([] if masks else all_)


def test_a_stream_that_does_not_ask_is_not_visited():
    layout = Streams(48, 3)
    plan = Plan(layout, Tile(16, 16), both=False, masks=False, scale=1.0, interpret=True)
    walk = plan.queries_of(plan.at(jnp.int32(1), jnp.int32(0), 16))
    assert {run.clean for runs in walk for run in runs} == {0}
