"""The sampler as a step: a row is the same alone, among others, in any slot, at any tick."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_strategy import EVERY
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from mdlm_jax import as_denoiser, sample, sampling, strategies, transforms
from mdlm_jax.networks import bert

SLOTS, LENGTH, MASK, END, PAD = 4, 12, 4, 7, 0
TEXT = np.resize([5, 6, 8, 9, 1], LENGTH).astype(np.int32)
# The network's type; each strategy reads float32. One of each kind stands for all.
IN_BFLOAT16 = (
    "exact_count",
    "ancestral",
    "confidence",
    "threshold",
    "remask, cap",
    "path_planning",
)
NUMBERS = ("seed", "steps", "blocks", "end_id", "temperature", "factor")


class Program:
    """The compiled step of a strategy over a small network, and what each request gives alone."""

    def __init__(self, name, dtype):
        config = bert.Config(
            vocab_size=10, mask_id=MASK, max_length=LENGTH, layers=2, width=16, heads=2,
            mlp_width=32, time_conditioning=True, norm_position="pre", positions="rope",
            dtype=dtype,
        )  # fmt: skip
        params = jax.tree.map(lambda x: 4 * x, bert.init(jax.random.key(1), config))
        self.strategy = EVERY[name]
        self.alone = {}

        @jax.jit
        def tick(params, state, temperature):
            shaped = transforms.temperature(bert.denoiser(params, config), temperature)
            return sampling.step(shaped, self.strategy, state, mask_id=MASK)

        @jax.jit
        def insert(state, row, canvas, seed, steps, blocks, end_id, factor):
            own = jax.tree.map(lambda x: factor * x, self.strategy)  # "loop": its times keep order
            return sampling.insert(
                state, row, own, canvas, jax.random.key(seed), mask_id=MASK, steps=steps,
                blocks=blocks, end_id=end_id, pad_id=jnp.where(end_id < 0, -1, PAD),
            )  # fmt: skip

        self._tick, self.insert_row = (lambda *a: tick(params, *a)), insert
        filled = np.tile(TEXT, (SLOTS, 1))
        keys = jax.random.split(jax.random.key(0), SLOTS)
        self.empty = sampling.start(
            self.strategy, filled, keys, mask_id=MASK, steps=1, end_id=jnp.full(SLOTS, -1)
        )

    def insert(self, state, temperature, row, request):
        canvas, numbers = request
        own = dict(zip(NUMBERS, numbers, strict=True))
        temperature = temperature.at[row].set(own.pop("temperature"))
        canvas = jnp.where(jnp.asarray(canvas), MASK, TEXT)
        return self.insert_row(state, row, canvas, **own), temperature

    def tick(self, state, temperature):
        return self._tick(state, temperature)

    def given(self, request):
        """What the request gives alone, in the first slot."""
        if request not in self.alone:
            state, temperature = self.insert(self.empty, jnp.ones(SLOTS), 0, request)
            while not state.done[0]:
                state = self.tick(state, temperature)
            self.alone[request] = self.of_row(state, 0)
        return self.alone[request]

    @staticmethod
    def of_row(state, row):
        kept = (state.canvas, state.step_of, state.log_prob, state.evaluations)
        return [np.asarray(leaf)[row] for leaf in kept]


def rows_of(state, row):
    """All leaves of a row, the keys as numbers."""
    state = state._replace(keys=jax.random.key_data(state.keys))
    return [np.asarray(leaf)[row] for leaf in jax.tree.leaves(state)]


def same(ones, others):
    return all(np.array_equal(one, other) for one, other in zip(ones, others, strict=True))


REQUESTS = st.tuples(
    st.tuples(*[st.booleans()] * LENGTH),
    st.tuples(
        st.integers(0, 2),
        st.integers(3, 9),
        st.integers(1, 3),
        st.sampled_from([-1, END]),
        st.sampled_from([0.0, 0.8, 1.0]),
        st.sampled_from([0.5, 1.0]),
    ),
)


def machine(program):
    class Slots(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.state, self.temperature = program.empty, jnp.ones(SLOTS)
            self.held = {}

        @precondition(lambda self: len(self.held) < SLOTS)
        @rule(which=st.integers(0, SLOTS - 1), request=REQUESTS)
        def admit(self, which, request):
            free = sorted(set(range(SLOTS)) - set(self.held))
            row = free[which % len(free)]
            self.state, self.temperature = program.insert(
                self.state, self.temperature, row, request
            )
            self.held[row] = request

        @precondition(lambda self: self.held)
        @rule(which=st.integers(0, SLOTS - 1), ticks=st.integers(1, 4))
        def cancel(self, which, ticks):
            self.go_on(ticks)
            for row in sorted(self.held)[which:]:
                self.state = self.state._replace(done=self.state.done.at[row].set(True))
                del self.held[row]
            self.go_on(2)

        @precondition(lambda self: self.held)
        @rule(ticks=st.integers(1, 4))
        def go_on(self, ticks):
            before = self.state
            for _ in range(ticks):
                self.state = program.tick(self.state, self.temperature)
            for row in np.flatnonzero(before.done):
                assert same(rows_of(before, row), rows_of(self.state, row))
            for row in [r for r in self.held if self.state.done[r]]:
                alone = program.given(self.held.pop(row))
                assert same(program.of_row(self.state, row), alone)

        def teardown(self):
            while self.held:
                self.go_on(3)

    return Slots


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in EVERY] + [(name, "bfloat16") for name in IN_BFLOAT16],
)
def test_a_row_is_the_same_whatever_is_beside_it(name, dtype):
    run_state_machine_as_test(
        machine(Program(name, dtype)),
        settings=settings(
            max_examples=10,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def oracle(tokens, t):
    """Logits that depend on the whole row, over five tokens and the mask."""
    seen = jax.nn.one_hot(tokens, 6).cumsum(axis=1)
    return jnp.sin(seen + 3 * jnp.arange(6) + seen.sum(axis=1, keepdims=True)) * 2


DENOISER = as_denoiser(oracle, 5)
BLANK = jnp.full((3, 8), 5).at[1, 2].set(0)
KEYS = jax.random.split(jax.random.key(3), 3)
VALUES = {"threshold": [0.2, 0.6, 0.95], "factor": [0.3, 1.0, 3.0], "entropy_bounded": [0, 1, 4]}


@pytest.mark.parametrize("name", VALUES)
def test_a_number_a_row_is_that_number_in_the_row(name):
    make = getattr(strategies, name)

    @jax.jit
    def write(value, steps):
        return sample(
            DENOISER, None, BLANK, mask_id=5, steps=steps, strategy=make(value), keys=KEYS,
            trace=True,
        )  # fmt: skip

    steps = jnp.array([8, 3, 6])
    tokens, trace = write(jnp.asarray(VALUES[name], jnp.float32), steps)
    assert len(set(trace.evaluations.tolist())) > 1
    for row, value in enumerate(VALUES[name]):
        alone, of_row = write(jnp.full(3, value, jnp.float32), jnp.full(3, steps[row]))
        assert np.array_equal(tokens[row], alone[row])
        assert np.array_equal(trace.step[row], of_row.step[row])


SHAPES = {
    "temperature": (transforms.temperature, [0.0, 0.5, 2.0]),
    "top_k": (transforms.top_k, [1, 2, 9]),
    "top_p": (transforms.top_p, [0.1, 0.6, 1.0]),
    "min_p": (transforms.min_p, [0.0, 0.4, 1.0]),
    "repetition_penalty": (transforms.repetition_penalty, [1.0, 1.5, 4.0]),
    "guide": (lambda d, w: transforms.guide(d, as_denoiser(lambda x, t: -oracle(x, t), 5), w),
              [0.0, 1.0, 2.0]),
    "several": (lambda d, v: transforms.top_p(transforms.temperature(d, v), v), [0.2, 0.5, 0.9]),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_a_strength_a_row_is_that_strength_in_the_row(name):
    shape, values = SHAPES[name]

    def logits(value):
        denoiser = shape(DENOISER, value)
        hidden = denoiser.encode(BLANK, jnp.ones(3))
        at, row = jax.tree.map(lambda x: x[:, 2], hidden.at), hidden.row
        return denoiser.shape(denoiser.readout(at, row), row)

    together = np.asarray(jax.jit(logits)(jnp.array(values)))
    for row, value in enumerate(values):
        np.testing.assert_allclose(together[row], logits(value)[row], rtol=1e-6)
    assert not np.allclose(together[1], logits(values[2])[1])


def test_what_is_asked_of_a_row_is_one_number_or_one_a_row():
    with pytest.raises(ValueError, match=r"a strength has shape \(2,\): it must be one number"):
        transforms.temperature(DENOISER, jnp.ones(2)).encode(BLANK, jnp.ones(3))
    with pytest.raises(ValueError, match=r"shape \(2,\): it must be one number, or one a row"):
        sampling.start(strategies.threshold(jnp.ones(2)), BLANK, KEYS, mask_id=5, steps=4)
    with pytest.raises(ValueError, match=r"steps must be one whole number, or integers \[3\]"):
        sampling.start(strategies.threshold(0.5), BLANK, KEYS, mask_id=5, steps=jnp.ones(3))
    with pytest.raises(ValueError, match="steps is 1, at least 2, one a block, are needed"):
        sampling.start(
            strategies.threshold(0.5), BLANK, KEYS, mask_id=5, steps=jnp.array([4, 1, 1]), blocks=2
        )
    with pytest.raises(ValueError, match=r"threshold: tau is .* must be from 0 to 1"):
        strategies.threshold(np.array([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"keys has shape \(2,\), it must be \(3,\)"):
        sampling.start(strategies.threshold(0.5), BLANK, KEYS[:2], mask_id=5, steps=4)


def test_another_kind_of_strategy_and_a_slot_that_is_not_there_are_refused():
    state = sampling.start(strategies.threshold(0.5), BLANK, KEYS, mask_id=5, steps=4)
    with pytest.raises(ValueError, match="is of another kind than the state was started with"):
        sampling.step(DENOISER, strategies.exact_count(), state, mask_id=5)
    other = {"key": jax.random.key(1), "mask_id": 5, "steps": 4}
    with pytest.raises(ValueError, match="is of another kind than the state was started with"):
        sampling.insert(state, 0, strategies.factor(0.5), BLANK[0], **other)
    with pytest.raises(ValueError, match="row is 3, the state has the slots 0 to 2"):
        sampling.insert(state, 3, strategies.threshold(0.1), BLANK[0], **other)
    with pytest.raises(ValueError, match=r"canvas has shape \(3, 8\), a row of the state has"):
        sampling.insert(state, 0, strategies.threshold(0.1), BLANK, **other)


def test_a_text_without_gaps_is_done_and_a_step_of_such_rows_evaluates_nothing():
    calls = []

    def counted(tokens, t):
        jax.debug.callback(lambda: calls.append(1))
        return oracle(tokens, t)

    full = jnp.zeros((3, 8), jnp.int32)
    state = sampling.start(strategies.threshold(0.5), full, KEYS, mask_id=5, steps=4)
    assert sampling.finished(state).all()
    strategy = strategies.threshold(0.5)
    for step in (sampling.step, jax.jit(sampling.step, static_argnums=(0, 1))):
        after = step(as_denoiser(counted, 5), strategy, state, mask_id=5)
        jax.effects_barrier()
        assert np.array_equal(after.canvas, full) and after.evaluations.max() == 0 and not calls


@pytest.mark.slow
def test_a_memory_is_carried_from_evaluation_to_evaluation():
    """The evaluation gets what the last one left; `always` also where no row asks."""

    def encode(memory, view, asked, t):
        return memory + 1, DENOISER.encode(view.canvas, t)

    strategy = strategies.exact_count()
    state = sampling.start(strategy, BLANK, KEYS, mask_id=5, steps=3)
    memory = jnp.zeros((), jnp.int32)
    for _ in range(5):
        state, memory = sampling.step_with(encode, DENOISER, strategy, state, memory, mask_id=5)
    assert memory == 3 and sampling.finished(state).all()
    _, memory = sampling.step_with(
        encode, DENOISER, strategy, state, memory, mask_id=5, always=True
    )
    assert memory == 4


@pytest.mark.slow
def test_a_row_ends_when_its_own_block_is_finished():
    ends = as_denoiser(lambda tokens, t: 9.0 * jax.nn.one_hot(jnp.full(tokens.shape, 3), 6), 5)
    strategy = strategies.left_to_right(last="greedy")
    canvas = jnp.full((2, 4), 5).at[0, 1:].set(0)
    state = sampling.start(
        strategy, canvas, KEYS[:2], mask_id=5, steps=jnp.array([1, 4]), end_id=3, pad_id=2
    )
    state = sampling.step(ends, strategy, state, mask_id=5)
    assert sampling.finished(state).tolist() == [True, False]
    assert state.canvas.tolist() == [[3, 0, 0, 0], [3, 5, 5, 5]]
    for _ in range(3):
        state = sampling.step(ends, strategy, state, mask_id=5)
    assert sampling.finished(state).all() and state.evaluations.tolist() == [1, 4]
    assert state.canvas.tolist() == [[3, 0, 0, 0], [3, 2, 2, 2]]


def test_more_steps_than_anybody_takes_are_a_limit_like_any_other():
    write = jax.jit(
        lambda steps: sample(
            DENOISER, None, BLANK, mask_id=5, steps=steps, strategy=strategies.threshold(0.99),
            keys=KEYS, blocks=3,
        )
    )  # fmt: skip
    tokens = write(1_000_000_000)
    assert not np.any(tokens == 5)
    with pytest.raises(ValueError, match=r"steps is 4294967300, it must be a 32-bit number"):
        sampling.start(strategies.threshold(0.5), BLANK, KEYS, mask_id=5, steps=2**32 + 4)
    with pytest.raises(ValueError, match=r"end_id or pad_id is -5, it must be a token, or -1"):
        sampling.start(strategies.threshold(0.5), BLANK, KEYS, mask_id=5, steps=4, end_id=-5)


@pytest.mark.parametrize("name", ["exact_count", "ancestral", "threshold", "remask, cap"])
def test_a_sampler_runs_where_numbers_have_64_bits(name):
    with jax.enable_x64(True):
        tokens = sample(
            DENOISER, None, BLANK, mask_id=5, steps=4, strategy=EVERY[name], keys=KEYS, end_id=3
        )
    assert tokens.dtype == jnp.int32 and not np.any(tokens == 5)
