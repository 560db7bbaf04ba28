"""The sampler: what is written, by which law, and when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_strategy import EVERY
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import CANVASES, MASK, PLACES, L, V, make_oracle
from scipy import stats
from shaped import one_a_row

from mdlm_jax import Denoiser, Hidden, as_denoiser, sample, strategies, transforms
from mdlm_jax.diffusion import noise
from mdlm_jax.networks import bert

KEY = jax.random.key(0)
ROWS = np.arange(len(CANVASES))
ALARM = 1e-3  # false-alarm rate of each chi-square test; seeds are fixed


EVERYWHERE = np.ones(CANVASES.shape, bool)


@pytest.fixture(scope="module")
def draw():
    """`(name, canvas, steps, ...) -> (tokens, trace)` in numpy: one program a strategy.

    `draw.seen` holds the canvases and times of the last call's network evaluations, in order.
    """
    programs = {}

    def recording(denoiser):
        def encode(tokens, t):
            jax.debug.callback(
                lambda *now: run.seen.append(jax.tree.map(np.array, now)), tokens, t, ordered=True
            )
            return denoiser.encode(tokens, t)

        return denoiser._replace(encode=encode)

    def run(
        name, canvas, steps, key=KEY, rows=ROWS, blocks=1, maskable=EVERYWHERE, fill=EVERYWHERE
    ):
        if name not in programs:
            programs[name] = jax.jit(
                lambda key, canvas, steps, rows, blocks, maskable, fill: sample(
                    recording(make_oracle().denoiser()), key, canvas, mask_id=MASK, steps=steps,
                    strategy=EVERY[name], blocks=blocks, maskable=maskable, fill=fill, rows=rows,
                    chunk=500, trace=True,
                )
            )  # fmt: skip
        canvas = np.broadcast_to(canvas, CANVASES.shape)
        run.seen = []
        out = jax.tree.map(
            np.asarray, programs[name](key, canvas, steps, rows, blocks, maskable, fill)
        )
        jax.effects_barrier()
        return out

    yield run
    # Steps and blocks are traced.
    assert all(program._cache_size() == 1 for program in programs.values())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
def test_every_blank_is_filled_and_nothing_else(draw, name, steps):
    tokens, trace = draw(name, CANVASES, steps)
    blank = CANVASES == MASK
    assert np.array_equal(tokens[~blank], CANVASES[~blank])
    assert np.all(tokens < V)
    assert np.array_equal(trace.step >= 0, blank)
    assert np.all(trace.step < steps)
    assert np.all(trace.log_prob[~blank] == 0)
    assert np.all(trace.evaluations <= steps)
    assert np.array_equal(trace.evaluations > 0, blank.any(axis=1))
    written_in = np.array([len(set(row[row >= 0])) for row in trace.step])
    assert np.all(written_in <= trace.evaluations)
    if name == "exact_count":  # as evenly as they divide
        assert np.array_equal(trace.evaluations, np.minimum(blank.sum(axis=1), steps))
        for s in range(steps):
            m = blank.sum(axis=1)
            due = m * (steps - s) // steps - m * (steps - 1 - s) // steps
            assert np.array_equal((trace.step == s).sum(axis=1), due)


@pytest.mark.parametrize("name", EVERY)
def test_the_same_key_gives_the_same_text_and_another_another(draw, name):
    first, again = draw(name, [MASK] * 4, 3)[0], draw(name, [MASK] * 4, 3)[0]
    other = draw(name, [MASK] * 4, 3, key=jax.random.key(1))[0]
    assert np.array_equal(first, again)
    assert np.array_equal(first, other) == (name == "greedy")
    assert len(np.unique(first, axis=0)) > 1 or name == "greedy"


@pytest.mark.parametrize("name", EVERY)
def test_a_rows_tokens_do_not_depend_on_the_other_rows(draw, name):
    whole, trace = draw(name, [MASK] * 4, 3)
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled, shuffled_trace = draw(name, [MASK] * 4, 3, rows=order)
    assert np.array_equal(shuffled, whole[order])
    assert np.array_equal(shuffled_trace.evaluations, trace.evaluations[order])
    others = CANVASES.copy()
    others[7] = MASK
    assert np.array_equal(draw(name, others, 3)[0][7], whole[7])


def test_one_key_a_row_is_the_noise_of_the_row_wherever_it_is(oracle):
    """Rows by key and number, by keys, and each alone in `vmap`."""
    canvas, rows = jnp.full((6, L), MASK), jnp.array([5, 0, 7, 2, 9, 4])

    def write(key, canvas, **options):
        return sample(oracle.denoiser(), key, canvas, mask_id=MASK, steps=3, **options)

    @jax.jit
    def in_every_way():
        keys = noise.row_keys(KEY, rows)
        alone = jax.vmap(lambda key, canvas: write(None, canvas[None], keys=key[None])[0])
        return (
            write(KEY, canvas, rows=rows),
            write(None, canvas, keys=keys),
            alone(keys, canvas),
        )

    numbered, *others = in_every_way()
    assert all(np.array_equal(other, numbered) for other in others)
    assert len(np.unique(numbered, axis=0)) > 1
    with pytest.raises(ValueError, match="each part would draw the same noise; give rows"):
        jax.vmap(lambda canvas: write(KEY, canvas))(canvas.reshape(2, 3, L))


@pytest.mark.slow
def test_by_default_one_token_a_step_in_an_order_that_is_random(oracle):
    """Also in blocks, of rows with 4 and with 3 blanks."""
    canvas = jnp.array([[MASK] * 4, [MASK, 1, MASK, MASK]])

    @jax.jit
    def write():
        ways = ({}, {"steps": 4, "strategy": strategies.exact_count()}, {"blocks": 3})
        return [
            sample(oracle.denoiser(), KEY, canvas, mask_id=MASK, trace=True, **options)
            for options in ways
        ]

    (tokens, trace), (same, _), (_, in_blocks) = write()
    assert np.array_equal(trace.evaluations, [4, 3])
    assert np.array_equal(tokens, same)
    for row, blanks in zip(np.asarray(in_blocks.step), (4, 3), strict=True):
        assert len(set(row[row >= 0])) == blanks


def test_a_filled_canvas_is_itself_eager_and_jitted(oracle):
    canvas = jnp.array([[0, 1, 2, 0]])

    def write(canvas):
        return sample(oracle.denoiser(), KEY, canvas, mask_id=MASK, blocks=2, trace=True)

    for tokens, trace in (write(canvas), jax.jit(write)(canvas)):
        assert np.array_equal(tokens, canvas)
        assert np.all(trace.step == -1) and np.all(trace.evaluations == 0)


def blocks_of(wanted, blocks):
    """Which block each wanted position is in, -1 elsewhere: as even as they divide."""
    place = np.cumsum(wanted, axis=1) - 1
    count = np.maximum(wanted.sum(axis=1, keepdims=True), 1)
    return np.where(wanted, place * blocks // count, -1)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31 - 1),
    blocks=st.integers(1, 3),
    more=st.integers(0, 9),
    name=st.sampled_from(sorted(EVERY)),
)
def test_any_canvas_any_steps_any_blocks(draw, seed, blocks, more, name):
    """What is wanted is filled, block by block in its own steps, and nothing else is written to."""
    rng, steps = np.random.default_rng(seed), blocks + more
    canvas = CANVASES[rng.integers(len(CANVASES), size=len(ROWS))]
    maskable, fill = rng.random((2, *canvas.shape)) < 0.8
    tokens, trace = draw(
        name, canvas, steps, key=jax.random.key(seed), blocks=blocks, maskable=maskable, fill=fill
    )
    wanted = (canvas == MASK) & maskable & fill
    assert np.array_equal(tokens[~wanted], canvas[~wanted])
    assert np.all(tokens[wanted] < V)
    block = blocks_of(wanted, blocks)[wanted]
    assert np.all(trace.step[~wanted] == -1)
    assert np.all(trace.step[wanted] >= steps * block // blocks)
    assert np.all(trace.step[wanted] < steps * (block + 1) // blocks)


def tiny_bert():
    """Parameters and config of an encoder of 40 tokens, float32, 40 the mask."""
    config = bert.Config(
        vocab_size=41, mask_id=40, max_length=12, width=16, heads=2, layers=1, mlp_width=16
    )  # fmt: skip
    return bert.init(jax.random.key(0), config), config


@pytest.mark.slow
def test_a_networks_row_is_the_same_alone_and_in_a_batch():
    params, config = tiny_bert()
    write = jax.jit(
        lambda canvas, rows: sample(
            bert.denoiser(params, config), KEY, canvas, mask_id=40, steps=6,
            strategy=EVERY["remask, cap"], rows=rows,
        )
    )  # fmt: skip
    whole = write(jnp.full((5, 12), 40), jnp.arange(5))
    assert len(np.unique(whole, axis=0)) == 5
    for row in range(5):
        assert np.array_equal(write(jnp.full((1, 12), 40), jnp.array([row]))[0], whole[row])


@pytest.mark.parametrize(
    ("strategy", "surest_first"),
    [
        (strategies.threshold(0.9), False),
        (strategies.factor(0.9), False),
        (strategies.entropy_bounded(0.2), True),
        (strategies.greedy(), True),
        (strategies.confidence(temperature=0.0), False),
    ],
    ids=["threshold", "factor", "entropy_bounded", "greedy", "confidence"],
)
def test_a_temperature_does_not_decide_where_or_how_much_is_written(strategy, surest_first):
    """32 blanks of which none is sure, drawn from as they are, at temperature 0, and by `top_k=1`.

    The places are in no order by how sure they are, so left to right is another order.
    """
    logits = np.zeros((32, 5), np.float32)  # of four tokens and the mask
    logits[:, 0] = np.random.default_rng(0).permutation(np.linspace(0.5, 1.5, 32))
    plain = as_denoiser(lambda tokens, t: jnp.broadcast_to(logits, (*tokens.shape, 5)), 4)
    ways = [plain, transforms.temperature(plain, 0.0), transforms.top_k(plain, 1)]
    tokens, trace = jax.jit(
        lambda key: sample(
            one_a_row(ways, jnp.arange(3)), key, jnp.full((3, 32), 4), mask_id=4, steps=32,
            strategy=strategy, trace=True,
        )
    )(KEY)  # fmt: skip
    assert np.array_equal(trace.evaluations, [32] * 3)
    assert np.all(np.asarray(tokens)[1:] == 0)
    surest = np.argsort(np.argsort(-logits[:, 0]))
    assert np.array_equal(trace.step[1:], [surest] * 2)
    assert np.array_equal(trace.step[0], surest) == surest_first
    log_p = jax.nn.log_softmax(logits[:, :4])[:, 0]
    np.testing.assert_allclose(trace.log_prob[1:], [log_p] * 2, rtol=1e-5)


def looped(t):
    """Mask rates of `remask("loop")`."""
    return np.where(t > 0.55, 1 - 0.9 * (1 - t) / 0.45, np.minimum(0.1, 0.1 * t / 0.05))


# Of the strategies with a grid of times, the mask rates of what they fill, by t.
RATES = {
    "ancestral": lambda t: t,
    "ancestral, cosine": lambda t: np.sin(np.pi / 2 * t),
    "ancestral, cosine grid": lambda t: np.cos(np.pi / 2 * (1 - t)),
    "remask, cap": lambda t: t,
    "remask, rescale": lambda t: t,
    "remask, confidence": lambda t: t,
    "remask, loop": looped,
}


@pytest.mark.parametrize("name", EVERY)
def test_the_time_told_is_that_of_the_whole_row(draw, name):
    """Two blocks of two steps, in rows with known text, padding, and masks that are not wanted.

    What is told is the rate at which all text is masked: as it is, where a strategy counts; else as
    the strategy's own rate has it for the wanted, with what is masked around them. That of
    `first_hitting` is random: the highest of k of 2 uniform rates has mean k / 3 (128 rows, 4.3
    sigma: of 4 means, false alarm 7e-5).
    """
    canvas, maskable, fill = np.full(CANVASES.shape, MASK), EVERYWHERE.copy(), EVERYWHERE.copy()
    canvas[128:192, 0], fill[128:192, 3] = 1, False
    maskable[192:, 3] = False
    _, trace = draw(name, canvas, 4, blocks=2, maskable=maskable, fill=fill)
    block = blocks_of((canvas == MASK) & maskable & fill, 2)
    assert np.array_equal(trace.step // 2, block)  # -1 // 2 is -1
    text = maskable.sum(axis=1)
    counts = name not in RATES and name != "first_hitting"
    assert len(draw.seen) == 4 or counts
    clock = np.zeros(len(canvas), int)  # each row's own: it leaves a block that is filled
    for now, t in draw.seen:
        masked = (now == MASK) & maskable
        if counts:
            np.testing.assert_allclose(t, masked.sum(axis=1) / text, atol=1e-6)
            continue
        if not name.startswith("remask"):
            blank = masked & (block == clock[:, None] // 2)
            clock = np.where(blank.any(axis=1), clock, np.maximum(clock, 2))
        index, wanted = clock % 2, block == clock[:, None] // 2
        outside = (masked & ~wanted).sum(axis=1)
        live = wanted.any(axis=1) & (masked.any(axis=1) | name.startswith("remask"))
        if name in RATES:
            told = (outside + wanted.sum(axis=1) * RATES[name](1 - index / 2)) / text
            told = np.arcsin(told) * 2 / np.pi if name == "ancestral, cosine" else told
            np.testing.assert_allclose(t[live], told[live], atol=1e-6)
        else:
            own = (t * text - outside) / np.maximum(wanted.sum(axis=1), 1)
            assert np.all(own[live] > -1e-5) and np.all(own[live] < 1)
            for of in (0, 1):
                some = own[:128][(live & (index == of))[:128]]
                assert len(some) < 100 or abs(some.mean() - (2 - of) / 3) < 0.09
        clock = np.minimum(clock + 1, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["exact_count", "path_planning"])
def test_the_end_of_text_ends_a_row(name):
    """A denoiser that writes 0 0 1 (the end) 0 0 ... in row 0, and never an end in row 1."""
    width, end, pad, mask = 8, 1, 2, 3

    def logits(tokens, t):
        ends = (jnp.arange(width) == 2) & (jnp.arange(2)[:, None] == 0)
        return 40.0 * jax.nn.one_hot(jnp.where(ends, end, 0), 4)

    def write(**options):
        tokens, trace = jax.jit(
            lambda key: sample(
                as_denoiser(logits, mask), key, jnp.full((2, width), mask).at[:, 0].set(end),
                mask_id=mask, steps=8, strategy=EVERY[name], trace=True, **options,
            )
        )(KEY)  # fmt: skip
        return np.asarray(tokens), jax.tree.map(np.asarray, trace)

    tokens, trace = write(end_id=end, pad_id=pad, blocks=4)
    assert np.array_equal(tokens, [[end, 0, end, *[pad] * 5], [end, *[0] * 7]])
    assert np.all(trace.step[0, 3:] == -1) and np.all(trace.log_prob[0, 3:] == 0)
    assert trace.evaluations[0] <= 4 and trace.evaluations[1] > trace.evaluations[0]
    if name != "exact_count":
        return
    assert np.array_equal(write(end_id=end)[0], [[end, 0, *[end] * 6], [end, *[0] * 7]])
    assert np.array_equal(write()[0][0], [end, 0, end, *[0] * 5])


def test_trace_holds_the_log_probability_at_the_time_of_writing(oracle, draw):
    tokens, trace = draw("exact_count", [MASK] * 4, L)
    tokens, step = tokens[:50], trace.step[:50]
    for i in range(50):
        for s in range(L):
            canvas = np.where(step[i] < s, tokens[i], MASK)
            p = oracle.conditionals[canvas @ PLACES][step[i] == s, tokens[i][step[i] == s]]
            np.testing.assert_allclose(trace.log_prob[i][step[i] == s], np.log(p), rtol=1e-4)


def test_confidence_without_noise_keeps_the_surest():
    """Position j is uniform over n_j tokens: whatever is drawn, log p = -log n_j ranks it."""
    choices = jnp.array([4, 1, 3, 2])
    logits = jnp.where(jnp.arange(5) < choices[:, None], 0.0, -jnp.inf)  # [4, 5]
    denoiser = as_denoiser(lambda tokens, t: jnp.broadcast_to(logits, (*tokens.shape, 5)), 4)
    _, trace = jax.jit(
        lambda key: sample(
            denoiser, key, jnp.full((50, 4), 4), mask_id=4, steps=4, trace=True,
            strategy=strategies.confidence(temperature=0),
        )
    )(KEY)  # fmt: skip
    # cos(pi/8, pi/4, 3pi/8) leaves 3, 2, 1 of four blanks: one token a step.
    assert np.array_equal(trace.step, [[3, 0, 2, 1]] * 50)
    np.testing.assert_allclose(trace.log_prob[0], -np.log([4, 1, 3, 2]), atol=1e-6)


def test_tail_tokens_of_a_large_vocabulary_come_at_their_rate():
    """V = 50,000: one token has 0.9, the others 2e-6 each.

    Of 2,000 draws 200 +- 13 are from the tail (4.5 sigma: false alarm 7e-6), spread evenly over it.
    """
    vocab, draws = 50_000, 2000
    logits = np.full(vocab + 1, np.log(0.1 / (vocab - 1)), np.float32)
    logits[0] = np.log(0.9)

    def readout(at, row):
        return jnp.broadcast_to(jnp.asarray(logits), (len(at), vocab + 1))

    denoiser = Denoiser(lambda tokens, t: Hidden(at=jnp.zeros(tokens.shape)), readout)
    tokens = jax.jit(
        lambda key: sample(
            denoiser, key, jnp.full((20, draws // 20), vocab), mask_id=vocab, steps=1,
            strategy=strategies.ancestral(),
        )
    )(KEY)  # fmt: skip
    tail = np.asarray(tokens)[np.asarray(tokens) > 0]
    assert abs(len(tail) - 0.1 * draws) < 4.5 * np.sqrt(draws * 0.1 * 0.9)
    assert stats.chisquare(np.bincount(tail * 10 // vocab, minlength=10)).pvalue > ALARM
