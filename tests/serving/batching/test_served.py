"""Deployments: what they share, and what is left of them."""

import dataclasses
import gc

import jax
import numpy as np
import pytest
from networks.tiny import BASE, MASK, params_of
from serving import serving_engines as tiny

from mdlm_jax.networks import bert
from mdlm_jax.runs.families import Blocks
from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.jobs import Unknown

WIDE = dataclasses.replace(BASE, width=64, mlp_width=512)
BYTES = sum(leaf.nbytes for leaf in jax.tree.leaves(params_of(WIDE)))


def held():
    gc.collect()
    return sum(leaf.nbytes for leaf in jax.live_arrays())


@pytest.mark.slow
def test_versions_of_the_same_arrays_share_memory_and_slots():
    params = tiny.placed(params_of(WIDE))
    with Engine() as engine:
        engine.add(tiny.deployment("one", WIDE, params))
        before = held()
        again = jax.tree.map(lambda leaf: leaf, params)  # another tree of the same arrays
        engine.add(tiny.deployment("few", WIDE, again))
        assert held() - before < BYTES / 100
        (lane,) = engine.stats().lanes
        assert lane.deployments == ("one", "few")
        (one,) = tiny.write(engine, [tiny.job(steps=8)], "one")
        (few,) = tiny.write(engine, [tiny.job(steps=2)], "few")
        assert (one.evaluations, few.evaluations) == (8, 2)
        before = held()
        engine.add(tiny.deployment("small", WIDE, params, slots=2))
        assert held() - before < BYTES / 4  # its own slots, and the same parameters
        assert len(engine.stats().lanes) == 2


@pytest.mark.slow
def test_parameters_on_the_host_are_put_on_the_device_once():
    params = params_of(WIDE)
    with Engine() as engine:
        engine.add(tiny.deployment("one", WIDE, params))
        before = held()
        engine.add(tiny.deployment("two", WIDE, params, slots=2))
        assert held() - before < BYTES / 4
        rows = [tiny.write(engine, [tiny.job()], name)[0] for name in ("one", "two")]
        assert all(row.done for row in rows)


def test_prepared_parameters_write_the_same():
    """A server need not keep parameters that it does not compute with."""
    with Engine() as engine:
        engine.add(tiny.deployment())
        engine.add(tiny.deployment("prepared", params=bert.prepare(params_of(BASE), BASE)))
        rows = [tiny.write(engine, [tiny.job()], name)[0] for name in ("tiny", "prepared")]
    assert tiny.same(*rows)


def test_what_is_removed_writes_to_the_end_and_frees_its_memory():
    before = held()
    with Engine() as engine:
        engine.add(tiny.deployment())
        engine.add(tiny.deployment("wide", WIDE, params_of(WIDE)))
        heard = [tiny.Heard() for _ in range(2 * tiny.SLOTS)]
        for each in heard:
            engine.submit("wide", tiny.job(steps=8), each)
        engine.remove("wide")
        with pytest.raises(Unknown, match="no model 'wide' is deployed; there is 'tiny'"):
            engine.submit("wide", tiny.job(), tiny.Heard())
        with pytest.raises(Unknown, match="no model 'wide' is deployed"):
            engine.remove("wide")
        assert all(each.last().done for each in heard)
        (row,) = tiny.write(engine, [tiny.job()])
        assert row.done and {*engine.deployments} == {"tiny"}
        assert [lane.deployments for lane in engine.stats().lanes] == [("tiny",)]
        assert held() - before < BYTES
        engine.add(tiny.deployment("wide", WIDE, params_of(WIDE)))  # the name is free again
        (row,) = tiny.write(engine, [tiny.job()], "wide")
        assert row.done and engine.stats().compilations == 0


@pytest.mark.slow
def test_lanes_go_on_side_by_side():
    both = {"exact_count": tiny.EXACT, "threshold": tiny.THRESHOLD}
    with Engine() as engine:
        engine.add(tiny.deployment(strategies=both, lengths=(4, 8)))
        jobs = [
            tiny.job(np.full(length, MASK, np.int32), strategy, seed=seed)
            for length in (4, 8)
            for strategy in both.values()
            for seed in range(6)
        ]
        rows = tiny.write(engine, jobs)
        assert all(len(row.tokens) == len(job.tokens) for job, row in zip(jobs, rows, strict=True))
        lanes = engine.stats().lanes
        assert [lane.counts.rows for lane in lanes] == [6, 6, 6, 6]
        assert {(lane.length, lane.strategy) for lane in lanes} == {
            (length, name) for length in (4, 8) for name in both
        }
        assert engine.stats().ended == {"done": 24}


def test_a_name_is_taken_once_and_a_deployment_offers_something():
    with Engine() as engine:
        engine.add(tiny.deployment())
        with pytest.raises(ValueError, match="deployment 'tiny' is there already"):
            engine.add(tiny.deployment())
    for fields, line in (
        ({"lengths": ()}, "lengths is empty"),
        ({"strategies": {}}, "strategies is empty"),
        ({"slots": 0}, "slots is 0, at least 1"),
        ({"blocks": {4: Blocks(2)}}, "blocks has none of the length 8"),
    ):
        with pytest.raises(ValueError, match=f"deployment 'tiny': {line}"):
            tiny.deployment(**fields)
    with pytest.raises(ValueError, match="queue is 0, it must be at least 1"):
        Engine(queue=0)
