"""What a policy at work looks at."""

import time
from types import SimpleNamespace

import pytest
import tiny_server

from mdlm_jax.serving.watching import steering
from mdlm_jax.serving.watching.policy import Band, Load, Policy, Stage, Times
from mdlm_jax.serving.watching.steering import Steering

BAND = Band(upper=2.0, lower=0.5)
STAGES = (Stage(), Stage(share=0.5), Stage(steps=2))


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Queues:
    """An engine, as far as it is looked at: how old the queue of each lane is."""

    def __init__(self, *ages):
        self.ages = ages

    def stats(self):
        return SimpleNamespace(lanes=[SimpleNamespace(oldest=age) for age in self.ages])


@pytest.fixture
def clock():
    return Clock()


def steered(clock, *names, engine=None, memory=lambda: None, **times):
    made = Policy(STAGES, dict.fromkeys(names, BAND), Times(**times))
    return Steering(made, engine or Queues(0.0), memory=memory, clock=clock)


def told(seconds, stage=0, status=200):
    return {"status": status, "ms": 1000 * seconds, "stage": stage}


def test_the_oldest_row_of_all_queues_counts(clock):
    queues = Queues(0.1, 2.5, 0.0)
    made = steered(clock, "queue_age_s", engine=queues)
    assert made.look() == Load(2.5, None, None) and made.stage == 1
    queues.ages = ()
    assert made.look().queue_age_s == 0.0 and made.moves == {"down": 1, "back": 0}


def test_p95_is_of_the_requests_of_this_stage(clock):
    """What took long before a move says nothing of the stage after it."""
    made = steered(clock, "p95_s", settle_s=5.0, dwell_s=20.0, window_s=30.0)
    for seconds in (*[1.0] * 9, 9.0):
        made.tell(told(seconds))
    assert made.look().p95_s == 9.0 and made.stage == 1  # the slowest of ten
    clock.now += 8
    for _ in range(20):
        made.tell(told(8.5, stage=0))  # which began before
    assert made.look().p95_s is None and made.stage == 1
    for _ in range(10):
        made.tell(told(3.0, stage=1))
    for status in (200, 504):
        made.tell(told(7.9, stage=1, status=status))
    for status in (400, 429, 499, 500):  # which say nothing of how long a text takes
        made.tell(told(0.0, stage=1, status=status))
    made.tell({"status": 200, "ms": 1.0})  # of another endpoint
    assert made.look().p95_s == 7.9 and made.stage == 2
    clock.now += 31
    assert made.look().p95_s is None and made.stage == 1
    clock.now += 20
    assert made.look() == Load(0.0) and made.stage == 0
    assert made.moves == {"down": 2, "back": 2}


def test_of_twenty_requests_nineteen_take_no_longer(clock):
    made = steered(clock, "p95_s")
    for seconds in range(1, 10):
        made.tell(told(seconds / 10))
    assert made.look().p95_s is None  # too few to say
    for seconds in range(10, 21):
        made.tell(told(seconds / 10))
    assert made.look().p95_s == 1.9


def test_memory_is_the_share_of_the_fullest_device(clock, monkeypatch):
    def device(*figures):
        names = ("bytes_in_use", "bytes_limit")
        return SimpleNamespace(memory_stats=lambda: dict(zip(names, figures, strict=False)) or None)

    devices = [device(10, 100), device(30, 100), device(), device(90)]
    monkeypatch.setattr(steering.jax, "local_devices", lambda: devices)
    assert steering.memory_share() == 0.3
    made = steered(clock, "memory", memory=iter([2.1, 0.1]).__next__)
    made.look()
    assert made.stage == 1
    steering.check(made.policy)
    monkeypatch.setattr(steering.jax, "local_devices", lambda: devices[2:])
    with pytest.raises(ValueError, match="this device does not tell how much memory"):
        steering.check(made.policy)


def test_requests_get_what_the_stage_of_their_coming_says(clock):
    queues = Queues(0.0)
    made = steered(clock, "queue_age_s", engine=queues)
    assert made.admit(pinned=False) == (0, STAGES[0])
    queues.ages = (9.0,)
    made.look()
    assert made.admit(pinned=False) == (1, STAGES[1])
    assert made.admit(pinned=True) == (0, STAGES[0])
    assert made.admitted == {(0, False): 1, (1, False): 1, (0, True): 1}


def test_it_looks_by_itself():
    queues = Queues(9.0)
    made = steered(time.monotonic, "queue_age_s", engine=queues, settle_s=0.0, dwell_s=0.0)
    with made.looking(0.01):
        tiny_server.wait_until(lambda: made.stage == 2)
        queues.ages = ()
        tiny_server.wait_until(lambda: made.stage == 0)
    queues.ages = (9.0,)
    time.sleep(0.05)
    assert made.stage == 0
