"""The engine: what is asked of it is written, told, given up, refused."""

import contextlib
import gc
import threading
import time
import weakref

import jax
import numpy as np
import pytest
import tiny_server
from networks.tiny import BASE, MASK, params_of
from serving import serving_engines as tiny

from mdlm_jax.diffusion import strategies
from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.jobs import Failed, Full, Stopping, Unknown


@contextlib.contextmanager
def held_up(engine):
    """The listener of a row holds the engine up until the end of the block."""
    go_on, begun = threading.Event(), threading.Event()

    def hold(event):
        begun.set()
        go_on.wait(30)

    engine.submit("tiny", tiny.job(), hold)
    assert begun.wait(30)
    yield
    go_on.set()


@pytest.fixture(scope="module")
def engine():
    with Engine(queue=8) as engine:
        engine.add(tiny.deployment())
        yield engine


def test_rows_are_written_and_all_else_is_kept(engine):
    rows = tiny.write(engine, [tiny.job(tiny.GAPS, seed=seed) for seed in range(6)])
    for row in rows:
        wanted = tiny.GAPS == MASK
        assert row.done and np.array_equal(row.tokens[~wanted], tiny.GAPS[~wanted])
        assert np.all(row.tokens[wanted] != MASK) and np.all(row.tokens < BASE.vocab_size)
        assert np.all(row.step[wanted] >= 0) and np.all(row.step[~wanted] == -1)
        assert np.all(row.log_prob[wanted] < 0) and row.evaluations == 4
    assert len({row.tokens.tobytes() for row in rows}) > 3


def test_a_row_without_a_gap_is_done_at_once(engine):
    full = np.where(tiny.GAPS == MASK, 5, tiny.GAPS)
    (row,) = tiny.write(engine, [tiny.job(full)])
    assert np.array_equal(row.tokens, full) and row.evaluations == 0


def test_progress_is_told_after_each_round_or_not_at_all(engine):
    told, silent = tiny.Heard(), tiny.Heard()
    engine.submit("tiny", tiny.job(steps=8), told)
    engine.submit("tiny", tiny.job(steps=8, progress=False), silent)
    last = told.last()
    assert tiny.same(last, silent.last()) and len(silent.events) == 1
    masked = [int((event.tokens == MASK).sum()) for event in told.events]
    assert masked == sorted(masked, reverse=True) and masked[-1] == 0
    for event in told.events:
        written = event.tokens != MASK
        assert np.array_equal(event.tokens[written], last.tokens[written])


def test_nothing_compiles_whatever_is_asked_for(engine):
    asked = [
        tiny.job(temperature=0.0),
        tiny.job(top_p=0.3, top_k=2, min_p=0.1, repetition_penalty=2.0),
        tiny.job(tiny.GAPS, forbid=(5, 6, 7), steps=1),
        tiny.job(tiny.GAPS, blocks=2, steps=5, end_id=5, pad_id=0),
        tiny.job(strategy=strategies.exact_count(), seed=2**63, choice=3),
    ]
    assert all(row.done for row in tiny.write(engine, asked))
    assert engine.stats().compilations == 0


def test_what_is_cancelled_ends_and_its_slot_is_free(engine):
    heard = [tiny.Heard() for _ in range(tiny.SLOTS + 2)]
    tickets = [engine.submit("tiny", tiny.job(steps=8), each) for each in heard]
    for ticket in tickets:
        ticket.cancel()
    for each in heard:
        last = each.last()
        assert getattr(last, "done", False) or last.reason == "cancelled"
    (after,) = tiny.write(engine, [tiny.job()])
    tickets[0].cancel()
    assert after.done
    lane = engine.stats().lanes[0]
    assert (lane.active, lane.queued) == (0, 0)


def test_a_deadline_that_passed_is_told(engine):
    (late,) = tiny.write(engine, [tiny.job(deadline=time.monotonic() - 1)])
    assert isinstance(late, Failed) and late.reason == "deadline"


def test_a_listener_that_raises_gives_up_its_own_row_alone(engine, caplog):
    def broken(event):
        raise RuntimeError("nobody listens")

    engine.submit("tiny", tiny.job(), broken)
    (beside,) = tiny.write(engine, [tiny.job()])
    assert beside.done and engine.ready and "a listener raised" in caplog.text


REFUSED = {
    "temperature is nan, it must be a finite number": {"temperature": float("nan")},
    "top_p is 0.0, it must be a finite number, above 0": {"top_p": 0.0},
    "top_k is 0, it must be from 1": {"top_k": 0},
    "min_p is 2, it must be a finite number, from 0 to 1": {"min_p": 2},
    "repetition_penalty is 0, it must be a finite number, above 0": {"repetition_penalty": 0},
    "steps is 1, it must be from 2": {"steps": 1, "blocks": 2},
    "steps is 2147483648": {"steps": 2**31},
    "seed is -1": {"seed": -1},
    "choice is -1": {"choice": -1},
    "forbid has the token 13": {"forbid": (13,)},
    "forbid: no token is left to write": {"forbid": tuple(range(13))},
    "end_id is the mask": {"end_id": MASK},
    "pad_id is for what follows end_id": {"pad_id": 1},
    "label is 0, it must be -1, without classes": {"label": 0},
    "tokens must be ids from 0 to 12": {"tokens": np.full(8, 13, np.int32)},
    "tokens are float32": {"tokens": np.zeros(8, np.float32)},
    "valid: the rows of this model have no padding": {"valid": np.arange(8) < 4},
    "maskable is bool.3., it must be bool.8.": {"maskable": np.ones(3, bool)},
}


@pytest.mark.parametrize("line", REFUSED)
def test_values_that_no_row_has_are_refused_in_a_line(engine, line):
    with pytest.raises(ValueError, match=line):
        engine.submit("tiny", tiny.job(**REFUSED[line]), tiny.Heard())


def test_what_is_not_offered_is_named(engine):
    heard = tiny.Heard()
    with pytest.raises(Unknown, match="no model 'big' is deployed; there is 'tiny'"):
        engine.submit("big", tiny.job(), heard)
    with pytest.raises(Unknown, match="a row has 3 tokens: 'tiny' takes 8"):
        engine.submit("tiny", tiny.job(tiny.BLANK[:3]), heard)
    with pytest.raises(Unknown, match="a strategy of another kind than 'tiny' offers: exact_count"):
        engine.submit("tiny", tiny.job(strategy=tiny.THRESHOLD), heard)
    with pytest.raises(Unknown, match="guidance is for models with classes"):
        engine.submit("tiny", tiny.job(guidance=1.0), heard)
    assert not heard.events


def test_a_full_queue_refuses_and_says_for_how_long(engine):
    heard, refused, users = [tiny.Heard() for _ in range(8)], [], tiny.Heard()
    with held_up(engine):
        for each in heard:
            engine.submit("tiny", tiny.job(priority=1), each)
        for _ in range(2):
            with pytest.raises(Full, match="8 requests wait already") as raised:
                engine.submit("tiny", tiny.job(priority=1), tiny.Heard())
            refused.append(raised.value.retry_after)
        engine.submit("tiny", tiny.job(), users)  # goes before those that wait
    assert users.last().done and all(each.last().done for each in heard)
    assert 0 < refused[0] <= refused[1] < 60
    assert engine.stats().refused == 2


def test_the_urgent_go_first(engine):
    order, heard = [], {}
    with held_up(engine):
        for number, priority in enumerate([2, 1, 0, 2, 1, 0]):
            heard[number] = tiny.Heard()

            def listen(event, number=number):
                order.append(number)
                heard[number](event)

            engine.submit("tiny", tiny.job(priority=priority, progress=False), listen)
    for each in heard.values():
        each.last()
    assert {*order[:4]} == {2, 5, 1, 4} and {*order[4:]} == {0, 3}


def test_the_drained_write_to_the_end_and_take_nothing_new():
    engine = Engine()
    assert not engine.ready and engine.reason == "no model is deployed"
    engine.add(tiny.deployment())
    heard = [tiny.Heard() for _ in range(6)]
    for each in heard:
        engine.submit("tiny", tiny.job(), each)
    assert engine.drain(30) and all(each.last(0).done for each in heard)
    with pytest.raises(Stopping, match="the engine is drained"):
        engine.submit("tiny", tiny.job(), tiny.Heard())
    with pytest.raises(Stopping, match="the engine is drained"):
        engine.add(tiny.deployment("other"))
    assert not engine.ready


def test_what_is_not_finished_when_it_ends_is_told():
    engine = Engine()
    engine.add(tiny.deployment())
    go_on, heard = threading.Event(), [tiny.Heard() for _ in range(6)]
    engine.submit("tiny", tiny.job(), lambda event: go_on.wait(30))
    for each in heard:
        engine.submit("tiny", tiny.job(), each)
    threading.Timer(0.2, go_on.set).start()
    assert not engine.drain(0)
    lasts = [each.last(0) for each in heard]
    assert {getattr(last, "reason", "done") for last in lasts} <= {"stopped", "done"}
    assert any(getattr(last, "reason", "") == "stopped" for last in lasts)
    assert all(len([e for e in each.events if isinstance(e, Failed)]) <= 1 for each in heard)


def test_a_round_that_fails_fails_its_rows_and_the_thread_lives(caplog):
    """The parameters are gone: a real failure of the compiled program."""
    lost = jax.tree.map(lambda x: x + 0, tiny.placed(params_of(BASE)))
    with Engine() as engine:
        engine.add(tiny.deployment())
        engine.add(tiny.deployment("lost", params=lost))
        for leaf in jax.tree.leaves(lost):
            leaf.delete()
        heard, beside = [tiny.Heard() for _ in range(tiny.SLOTS + 2)], tiny.Heard()
        with held_up(engine):
            for each in heard:
                engine.submit("lost", tiny.job(), each)
            engine.submit("tiny", tiny.job(), beside)
        assert beside.last().done
        for each in heard:
            last = each.last()
            assert last.reason == "failed" and "deleted" in last.message, last
            assert "\n" not in last.message and len(each.events) == 1
        assert not engine.ready and "a round failed" in engine.reason
        with pytest.raises(Stopping, match="a round failed"):
            engine.submit("tiny", tiny.job(), tiny.Heard())
        assert engine.drain(10)


def test_an_idle_engine_holds_nothing_of_what_was_removed():
    with Engine() as engine:
        engine.add(tiny.deployment())
        engine.add(tiny.deployment("gone"))
        kept = weakref.ref(jax.tree.leaves(engine.parameters("gone"))[0])
        assert tiny.write(engine, [tiny.job()], "gone")[0].done
        engine.remove("gone")

        def freed():
            gc.collect()
            return kept() is None

        tiny_server.wait_until(freed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_has_ended_takes_no_rows():
    def end(params):
        raise SystemExit

    engine = Engine()
    engine.add(tiny.deployment())
    engine.aside("tiny", end)
    engine._thread.join(30)
    assert engine.reason == "the engine's thread has ended" and not engine.ready
    for ask in (tiny.job(), tiny.Heard()), None:
        with pytest.raises(Stopping, match="has ended"):
            engine.submit("tiny", *ask) if ask else engine.aside("tiny", end)
