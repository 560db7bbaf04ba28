"""A row is what `generate` writes, whatever is admitted, cancelled or timed out beside it."""

import collections
import dataclasses
import functools
import itertools
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from networks.tiny import BASE, MASK
from serving import serving_engines as tiny

from mdlm_jax.diffusion import strategies
from mdlm_jax.runs.families import Blocks
from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.batching.served import serve
from mdlm_jax.serving.batching.waiting import Entry

MODERN = dataclasses.replace(BASE, norm_position="pre", positions="rope")
PLAIN = tiny.deployment(encoder=MODERN)
LONG = 14  # beyond the training's rows, and no whole blocks


def deployed(strategy, **fields):
    return tiny.deployment(strategies={"own": strategy}, **fields)


# Each with the strategy of its jobs.
KINDS = {
    "exact_count": (deployed(tiny.EXACT, encoder=MODERN), tiny.EXACT),
    "threshold, padded": (
        deployed(tiny.THRESHOLD, padded=True, encoder=dataclasses.replace(BASE, dtype="bfloat16")),
        strategies.threshold(0.2),
    ),
    "remask, timed, classes": (
        deployed(
            strategies.remask("cap", 0.1),
            encoder=dataclasses.replace(
                BASE, time_conditioning=True, norm_position="pre", classes=3, vocab_multiple=8
            ),
        ),
        strategies.remask("cap", 0.4),
    ),
    "causal, classes": (
        deployed(
            strategies.left_to_right(),
            encoder=dataclasses.replace(
                MODERN, attention="causal", classes=3, dtype="bfloat16"
            ),
            start_id=1,
        ),
        strategies.left_to_right(),
    ),
    "blocks": (
        deployed(
            tiny.EXACT, encoder=MODERN, lengths=(LONG,), blocks={LONG: Blocks(4, 8)}
        ),
        tiny.EXACT,
    ),
    "blocks, threshold, classes": (
        deployed(
            tiny.THRESHOLD,
            encoder=dataclasses.replace(MODERN, classes=2, dtype="bfloat16"),
            blocks={tiny.LENGTH: Blocks(2)},
        ),
        strategies.threshold(0.15),
    ),
}  # fmt: skip
# A whole row, gaps, a text behind which nothing is known, a row that is given.
ROWS = ("........", ".ab..c.d", "abc...??", "abcdabcd", "ab......")


@functools.cache
def lane_of(kind, guided=False):
    lanes = serve(KINDS[kind][0], [], limit=1).lanes
    return next(lane for own, lane in lanes.items() if own.guided == guided)


def job_of(kind, row, options, *, guidance=None, deadline=float("inf")):
    deployment, strategy = KINDS[kind]
    length = deployment.lengths[0]
    text = (ROWS[row] + "." * LONG)[:length]
    tokens = np.array([MASK if c in ".?" else ord(c) - ord("a") + 5 for c in text], np.int32)
    fill = np.array([c == "." for c in text])
    options = dict(options)
    if deployment.padded and row == 2:
        options["valid"] = fill | (tokens != MASK)
    if deployment.encoder.classes:
        options["label"] = row % deployment.encoder.classes
    if deployment.blocks:
        options.pop("blocks", None)
    job = tiny.job(tokens, strategy, guidance=guidance, deadline=deadline, **options)
    return dataclasses.replace(job, fill=fill)


OPTIONS = [
    {},
    {"temperature": 0.5, "end_id": 6, "pad_id": 0, "blocks": 2},
    {"temperature": 0.0, "steps": 3},
    {"top_p": 0.6, "min_p": 0.05},
    {"repetition_penalty": 1.7, "forbid": (5, 8), "top_k": 4},
]


QUICK = ("exact_count", "blocks")


def check(kind, several):
    deployment, _ = KINDS[kind]
    jobs = [
        job_of(kind, row, {"steps": 5, "seed": 7 * row, "choice": row % tiny.SLOTS, **options})
        for options, row in itertools.product(several, range(len(ROWS)))
    ]
    with Engine() as engine:
        engine.add(deployment)
        rows = tiny.write(engine, jobs)
        assert engine.stats().compilations == 0
    for job, row in zip(jobs, rows, strict=True):
        assert tiny.same(row, tiny.filled(deployment, job)), job


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUICK)
def test_a_row_is_what_generate_writes(kind):
    """To the bit, several requests at a time, each in whatever slot is free."""
    check(kind, OPTIONS[:1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_any_options_is_what_generate_writes(kind):
    check(kind, OPTIONS[1:])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "classes" in kind])
def test_a_guided_row_is_what_generate_writes(kind):
    jobs = [job_of(kind, row, {"seed": row}, guidance=1.0 + row / 2) for row in (0, 1, 4)]
    with Engine() as engine:
        engine.add(KINDS[kind][0])
        rows = tiny.write(engine, jobs)
    for job, row in zip(jobs, rows, strict=True):
        assert tiny.same(row, tiny.filled(KINDS[kind][0], job)), job


class Alone:
    """What each job gives in a lane without others."""

    def __init__(self, lane):
        self.lane, self.found = lane, {}

    def __call__(self, key, job):
        if key not in self.found:
            heard = tiny.Heard()
            job = dataclasses.replace(job, deadline=float("inf"))
            self.lane.admit([(0, entry(job, heard))])
            while not self.lane.is_idle:
                self.lane.round()
            self.found[key] = heard.last(0)
        return self.found[key]


def entry(job, listener):
    return Entry(job, listener, 0, time.monotonic(), collections.Counter())


REQUESTS = st.tuples(
    st.integers(0, len(ROWS) - 1),
    st.integers(0, len(OPTIONS) - 1),
    st.integers(0, 2),
    st.integers(2, 7),
)


def machine(kind):
    lane, alone = lane_of(kind), Alone(lane_of(kind))
    # What happens when is the machine's alone to decide, and not the clock's.
    lane._ticks = lambda: (1, 2)

    class Slots(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.here = {}  # slot: key, job, what was heard, entry

        @precondition(lambda self: len(self.here) < tiny.SLOTS)
        @rule(which=st.integers(0, tiny.SLOTS - 1), request=REQUESTS, late=st.booleans())
        def admit(self, which, request, late):
            row, options, seed, steps = request
            free = lane.free()
            slot = free[which % len(free)]
            deadline = time.monotonic() if late else float("inf")
            job = job_of(
                kind, row, {**OPTIONS[options], "seed": seed, "steps": steps}, deadline=deadline
            )
            heard = tiny.Heard()
            self.here[slot] = request, job, heard, entry(job, heard)
            lane.admit([(slot, self.here[slot][-1])])

        @precondition(lambda self: self.here)
        @rule(which=st.integers(0, tiny.SLOTS - 1))
        def cancel(self, which):
            slot = sorted(self.here)[which % len(self.here)]
            self.here[slot][-1].cancelled = True

        @precondition(lambda self: self.here)
        @rule(rounds=st.integers(1, 3))
        def go_on(self, rounds):
            for _ in range(rounds):
                lane.round()
            free = lane.free()
            self.check([slot for slot in self.here if slot in free])

        def check(self, slots):
            ended = [self.here.pop(slot) for slot in slots]
            written = [each for each in ended if each[2].last(0).__class__.__name__ == "Written"]
            if lane.is_idle:
                for request, job, heard, _ in written:
                    assert tiny.same(heard.events[-1], alone(request, job)), request
            else:
                self.later = [*getattr(self, "later", []), *written]

        def teardown(self):
            while self.here:
                self.go_on(3)
            for request, job, heard, _ in getattr(self, "later", []):
                assert tiny.same(heard.events[-1], alone(request, job)), request

    return Slots


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_whatever_is_beside_it(kind):
    run_state_machine_as_test(
        machine(kind),
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
