"""Tiny models, jobs, and what an engine tells of them."""

import queue

import jax
import numpy as np
from networks.tiny import BASE, MASK, params_of

from mdlm_jax.diffusion import strategies
from mdlm_jax.host import parallel
from mdlm_jax.runs.sampler import Method
from mdlm_jax.runs.shaping import Shaping
from mdlm_jax.serving.batching.engine import Deployment
from mdlm_jax.serving.jobs import Failed, Job
from mdlm_jax.writing import filling
from mdlm_jax.writing.canvases import Canvas

LENGTH, SLOTS = BASE.max_length, 4
EXACT, THRESHOLD = strategies.exact_count(), strategies.threshold(0.5)
BLANK = np.full(LENGTH, MASK, np.int32)
GAPS = np.array([7, MASK, 8, MASK, MASK, 9, MASK, 10], np.int32)


def mesh():
    return parallel.make_mesh(devices=jax.devices()[:1])


def placed(params):
    return jax.device_put(params, parallel.replicated(mesh()))


def deployment(name="tiny", encoder=BASE, params=None, **fields):
    params = placed(params_of(encoder)) if params is None else params
    fields = {"lengths": (LENGTH,), "strategies": {"exact_count": EXACT}, "slots": SLOTS} | fields
    return Deployment(name, params, encoder, **fields)


def job(tokens=BLANK, strategy=EXACT, steps=4, seed=0, **fields):
    fields = {"every": 0.0} | fields
    return Job(tokens, tokens == MASK, strategy, steps, seed, **fields)


class Heard:
    """A listener that keeps the events of a job."""

    def __init__(self):
        self.events = []
        self._last = queue.SimpleQueue()

    def __call__(self, event):
        self.events.append(event)
        if isinstance(event, Failed) or event.done:
            self._last.put(event)

    def last(self, timeout=60):
        return self._last.get(timeout=timeout)


def write(engine, jobs, name="tiny"):
    """The last event of each job, all of them at a time."""
    heard = []
    for each in jobs:
        heard.append(Heard())
        engine.submit(name, each, heard[-1])
    return [each.last() for each in heard]


def same(one, other):
    """Whether two rows are the same to the bit."""
    return (
        np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.step, other.step)
        and np.array_equal(one.log_prob, other.log_prob)
        and one.evaluations == other.evaluations
    )


def filled(deployment, job):
    """What `filling.fill` writes for the job, in as many rows."""
    method = Method(
        strategy=job.strategy,
        shaping=Shaping(
            forbid=job.forbid,
            repetition_penalty=job.repetition_penalty,
            temperature=job.temperature,
            min_p=job.min_p,
            top_k=job.top_k,
            top_p=job.top_p,
        ),
        steps=job.steps,
        blocks=job.blocks,
        guidance=job.guidance,
        end_id=job.end_id,
        pad_id=job.pad_id,
        start_id=deployment.start_id,
        in_blocks=deployment.blocks and deployment.blocks[len(job.tokens)],
    )
    valid = np.ones(job.tokens.shape, bool) if job.valid is None else job.valid
    canvas = Canvas(
        tokens=job.tokens[None],
        fill=job.fill[None],
        shown=job.fill[None],
        valid=valid[None] if deployment.padded else None,
        maskable=None if job.maskable is None else job.maskable[None],
    )
    rows = filling.fill(
        deployment.params,
        deployment.encoder,
        mesh(),
        method,
        canvas,
        labels=np.array([job.label], np.int32),
        samples=deployment.slots,
        batch_size=deployment.slots,
        seed=job.seed,
    )
    return next(rows)[job.choice]
