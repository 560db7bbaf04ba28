"""Work beside the rows: it changes none of them, takes little, and is never starved."""

import functools
import threading
import time
from concurrent.futures import CancelledError, Future

import pytest
import tiny_server
from serving import serving_engines as tiny

from mdlm_jax.serving.batching import asides
from mdlm_jax.serving.batching.asides import Aside, Asides
from mdlm_jax.serving.batching.engine import Engine
from mdlm_jax.serving.jobs import Stopping, Unknown


class Clock:
    """A clock that stands still but for work and for `wait`."""

    now = 100.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds
        return self.now


@pytest.fixture(scope="module")
def engine():
    with Engine() as engine:
        engine.add(tiny.deployment())
        yield engine


def test_it_takes_a_bounded_share_under_load_and_all_that_is_free():
    clock = Clock()
    waiting = Asides(clock)

    def done(seconds, *, busy):
        """How long the next piece waits, of those that take so many seconds."""
        waiting.put(Aside("tiny", lambda params: clock.wait(params), Future()))
        begun = clock.now
        while (piece := waiting.take(busy=busy)) is None:
            clock.wait(0.01)
            assert clock.now - begun < 2 * asides.LONGEST, "it is starved"
        waited = clock.now - begun
        waiting.run(piece, seconds)
        return waited

    assert done(0.1, busy=True) == 0  # the first one
    assert done(0.1, busy=False) == 0
    begun = clock.now
    for _ in range(3):
        assert done(0.1, busy=True) == pytest.approx(4.9, abs=0.02)
    assert 0.3 / (clock.now - begun) == pytest.approx(asides.SHARE, rel=0.05)
    done(100.0, busy=False)  # something was slow, once
    assert done(0.1, busy=True) == pytest.approx(asides.LONGEST, abs=0.02)


def test_it_is_done_in_order_with_the_parameters_and_tells_what_is_raised(engine):
    order = []

    def fail(params):
        raise RuntimeError("out of memory")

    failed = engine.aside("tiny", fail)

    def note(number, params):
        order.append(number)
        return params

    given = [engine.aside("tiny", functools.partial(note, number)) for number in range(3)]
    assert all(each.result(30) is engine.parameters("tiny") for each in given)
    assert order == [0, 1, 2]
    with pytest.raises(RuntimeError, match="out of memory"):
        failed.result(30)
    assert engine.ready and tiny.write(engine, [tiny.job()])[0].done


def test_rows_are_the_same_beside_it_and_it_is_not_starved(engine):
    """There are rows all the time, of one thread or of the other."""
    alone = tiny.write(engine, [tiny.job(seed=seed) for seed in range(4)])
    ended, beside = threading.Event(), []

    def load():
        while not ended.is_set():
            beside.append(tiny.write(engine, [tiny.job(seed=seed % 4) for seed in range(12)]))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        took, waited = [0.0], []

        def piece(params):
            begun = time.monotonic()
            time.sleep(0.01)
            took.append(time.monotonic() - begun)  # more on a busy machine

        for _ in range(3):
            begun = time.monotonic()
            engine.aside("tiny", piece).result(120)
            waited.append(time.monotonic() - begun)
        tiny_server.wait_until(lambda: len(beside) > 3)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    for before, seconds in zip(took, waited, strict=False):
        assert seconds < before / asides.SHARE + 5
    for rows in beside:
        assert all(tiny.same(row, alone[n % 4]) for n, row in enumerate(rows))


def test_what_is_gone_or_drained_gets_none():
    engine = Engine()
    engine.add(tiny.deployment())
    with pytest.raises(Unknown, match="no model 'big' is deployed"):
        engine.aside("big", lambda params: None)
    go_on, begun = threading.Event(), threading.Event()
    engine.aside("tiny", lambda params: begun.set() or go_on.wait(30))
    assert begun.wait(30)
    late = engine.aside("tiny", lambda params: "done")
    nobody = engine.aside("tiny", lambda params: "done")
    assert nobody.cancel()
    engine.remove("tiny")
    go_on.set()
    with pytest.raises(Unknown):
        late.result(30)
    engine.add(tiny.deployment())
    go_on.clear()
    begun.clear()
    held = engine.aside("tiny", lambda params: begun.set() or go_on.wait(30))
    assert begun.wait(30)
    waits = engine.aside("tiny", lambda params: "done")
    drains = threading.Thread(target=engine.drain, args=(30,))
    drains.start()
    with pytest.raises(CancelledError):
        waits.result(30)
    go_on.set()
    drains.join()
    assert held.result(0)
    with pytest.raises(Stopping, match="drained"):
        engine.aside("tiny", lambda params: None)
