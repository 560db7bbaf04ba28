"""The compiled programs: what they hold, and what the host and the device tell each other."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from networks.tiny import BASE, MASK, params_of
from serving import serving_engines as tiny

from mdlm_jax.diffusion import noise, strategies
from mdlm_jax.runs.families import Blocks
from mdlm_jax.serving.rows import given, programs
from mdlm_jax.serving.rows.kinds import Kind

SLOTS, LENGTH = 32, 128  # more positions than are read out at a time
LARGE = dataclasses.replace(
    BASE, vocab_size=1500, max_length=LENGTH, norm_position="pre", positions="rope", layers=1
)
STRATEGIES = {"exact_count": tiny.EXACT, "confidence": strategies.confidence()}
KINDS = [("exact_count", None), ("confidence", None), ("exact_count", 8)]


def sizes(text):
    """Elements of every array that a compiled program names."""
    shapes = re.findall(r"\b[a-z]+[0-9]*\[([0-9,]+)\]", text)
    return {math.prod(map(int, shape.split(","))): shape for shape in shapes}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), KINDS)
def test_nothing_is_as_large_as_slots_by_positions_by_vocabulary(name, size):
    kind = Kind(
        encoder=LARGE,
        mesh=tiny.mesh(),
        slots=SLOTS,
        length=LENGTH,
        strategy=jax.tree.structure(STRATEGIES[name]),
        blocks=size and Blocks(size),
    )
    found = sizes(programs.compiled(kind, tiny.placed(params_of(LARGE))).round.as_text())
    chunk = min(STRATEGIES[name].chunk, SLOTS * (size or LENGTH)) * LARGE.vocab_size
    assert max(found) >= chunk  # logits are among them
    assert max(found) < SLOTS * LENGTH * LARGE.vocab_size, found[max(found)]


def test_a_job_is_the_same_on_the_other_side():
    job = tiny.job(
        tiny.GAPS,
        strategies.remask("cap", 0.25),
        steps=7,
        seed=2**63 + 5,
        choice=3,
        valid=np.arange(8) < 6,
        maskable=np.arange(8) % 2 == 0,
        blocks=2,
        temperature=0.5,
        top_k=9,
        top_p=0.75,
        min_p=0.125,
        repetition_penalty=1.5,
        forbid=(5,),
        guidance=2.5,
        label=1,
        end_id=6,
    )
    numbers = jax.tree.leaves(job.strategy)
    words = given.nothing(3, 8, len(numbers))
    given.pack(words[1], job, numbers)
    told = given.unpack(jax.numpy.asarray(words), 8)
    assert told.action.tolist() == [given.KEEP, given.ADMIT, given.KEEP]
    own = jax.tree.map(lambda leaf: leaf[1].tolist(), told._replace(keys=told.action))
    assert own.tokens == job.tokens.tolist() and own.fill == job.fill.tolist()
    assert own.valid == job.valid.tolist() and own.maskable == job.maskable.tolist()
    assert own.numbers == pytest.approx(numbers, rel=1e-6)
    assert own.whole == {
        **{"steps": 7, "blocks": 2, "end_id": 6, "pad_id": 6, "top_k": 9, "label": 1},
        "forbids": 1,
    }
    assert own.real == {
        **{"temperature": 0.5, "top_p": 0.75, "min_p": 0.125, "repetition_penalty": 1.5},
        "guidance": 2.5,
    }
    key = noise.derive(noise.seed_key(job.seed), "samples")
    expected = noise.row_keys(key, np.array([3]))[0]
    assert jax.random.key_data(told.keys[1]).tolist() == jax.random.key_data(expected).tolist()


def test_what_a_job_leaves_out_changes_nothing():
    words = given.nothing(1, 8, 0)
    given.pack(words[0], tiny.job(valid=np.arange(8) < 6), [])
    told = given.unpack(jax.numpy.asarray(words), 8)
    assert told.maskable[0].tolist() == told.valid[0].tolist() == [True] * 6 + [False] * 2
    given.pack(words[0], tiny.job(), [])
    told = given.unpack(jax.numpy.asarray(words), 8)
    assert told.maskable.all() and told.valid.all()
    assert (told.whole["end_id"], told.whole["pad_id"]) == (-1, -1)
    assert told.whole["top_k"] == np.iinfo(np.int32).max and told.real["guidance"] == 1


@pytest.fixture(scope="module")
def program():
    kind = Kind(BASE, tiny.mesh(), 4, 8, jax.tree.structure(tiny.EXACT))
    return programs.compiled(kind, tiny.placed(params_of(BASE)))


def called(program, jobs, limits):
    words = given.nothing(4, 8, 0)
    for row, job in zip(words, jobs, strict=False):
        given.pack(row, job, [])
    params = tiny.placed(params_of(BASE))
    rows = program.begin(params)
    forbidden = np.zeros((4, BASE.vocab_size), bool)
    rows, told = program.round(params, rows, forbidden, words, np.array(limits, np.int32))
    return programs.read(told)


def test_a_round_ends_when_a_row_is_done_but_not_before_its_least_ticks(program):
    jobs = [tiny.job(steps=steps) for steps in (3, 6, 8)]
    assert called(program, jobs, (1, 64)).ticks == 3
    assert called(program, jobs, (5, 64)).ticks == 5
    assert called(program, jobs, (1, 2)).ticks == 2
    after = called(program, jobs, (8, 64))
    assert after.ticks == 8 and after.done.all() and after.evaluations.tolist() == [3, 6, 8, 0]
    assert called(program, [], (1, 64)).ticks == 0  # nobody is there


def test_rows_are_taken_over_and_a_wrong_shape_is_an_error(program):
    params = tiny.placed(params_of(BASE))
    rows = program.begin(params)
    words, limits = given.nothing(4, 8, 0), np.array([1, 1], np.int32)
    forbidden = np.zeros((4, BASE.vocab_size), bool)
    program.round(params, rows, forbidden, words, limits)
    assert all(leaf.is_deleted() for leaf in rows)
    with pytest.raises(TypeError, match="compiled"):
        program.round(params, program.begin(params), forbidden, words[:, 1:], limits)


def test_forbidden_tokens_are_those_of_the_slot(program):
    ids = np.zeros(BASE.vocab_size, bool)
    ids[[5, 7]] = True
    forbidden = jax.device_put(np.zeros((4, BASE.vocab_size), bool))
    after = np.asarray(program.forbid(forbidden, np.int32(2), ids))
    assert np.array_equal(after[2], ids) and after.sum() == 2
    assert MASK not in np.flatnonzero(ids)
