"""The sampler of blocks: its law, what it costs, what it keeps, and when it stops."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from any_width import of_any_width
from block_law import SIZES, block_denoiser, law_of_writing
from every_strategy import EVERY, any_conditionals, table_denoiser
from oracle import MASK, STRINGS, L, V, chi_square_p

from mdlm_jax import Denoiser, blocks, sample, strategies, transforms
from mdlm_jax.diffusion import noise
from mdlm_jax.diffusion.blocks.generation import advance

pytestmark = pytest.mark.slow  # each case compiles a sampler of its own

KEY = jax.random.key(0)
TABLE = any_conditionals()  # of no joint: the law depends on the block size
ALARM = 1e-4  # of each chi-square test, of which there are 14; seeds are fixed
CANVASES = np.array(
    [
        [MASK] * 4,
        [1, MASK, MASK, MASK],
        [MASK, 0, MASK, MASK],  # a gap before and behind it
        [MASK, MASK, MASK, 2],
        [0, 1, MASK, MASK],  # a whole block of two is given
    ]
)


@pytest.mark.parametrize("size", SIZES)
def test_a_token_a_step_follows_the_law_around_prompts_and_gaps(size):
    rows = 4000
    tokens = jax.jit(
        lambda key: blocks.sample(
            block_denoiser(TABLE, size), key, jnp.repeat(jnp.asarray(CANVASES), rows, axis=0),
            mask_id=MASK, steps=size, chunk=len(CANVASES) * rows,
        )
    )(KEY)  # fmt: skip
    numbers = np.asarray(tokens).reshape(len(CANVASES), rows, L) @ V ** np.arange(L - 1, -1, -1)
    for canvas, of_canvas in zip(CANVASES, numbers, strict=True):
        counts = np.bincount(of_canvas.reshape(-1), minlength=len(STRINGS))
        assert chi_square_p(counts, law_of_writing(TABLE, canvas, size)) > ALARM, canvas


def test_laws_of_block_sizes_differ():
    """So the test above tells them apart."""
    laws = [law_of_writing(TABLE, CANVASES[0], size) for size in SIZES]
    for law in laws:
        assert law.sum() == pytest.approx(1)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(laws[one] - laws[other]).sum() > 0.05


def canvas_of(width):
    text = jax.random.randint(jax.random.key(3), (6, width), 0, MASK)
    return jnp.where(jax.random.bernoulli(jax.random.key(4), 0.7, text.shape), MASK, text)


@pytest.mark.parametrize("name", ["exact_count", "threshold", "remask, cap", "path_planning"])
def test_one_block_is_the_sampler_of_the_row_token_for_token(name):
    options = {
        "canvas": canvas_of(L), "mask_id": MASK, "steps": 3, "strategy": EVERY[name],
        "end_id": 0, "pad_id": 1, "trace": True,
    }  # fmt: skip
    rows, by_block = jax.jit(
        lambda key: (
            sample(table_denoiser(TABLE), key, **options),
            blocks.sample(block_denoiser(TABLE, L), key, **options),
        )
    )(KEY)
    jax.tree.map(np.testing.assert_array_equal, rows, by_block)


@pytest.mark.parametrize("given", ["rows", "keys"])
def test_one_block_has_the_noise_of_its_row(given):
    numbers = jnp.arange(6) * 5 % 7
    of = {"rows": {"key": KEY, "rows": numbers}, "keys": {"key": None}}[given]
    of |= {"keys": noise.row_keys(KEY, numbers)} if given == "keys" else {}
    options = of | {"canvas": canvas_of(L), "mask_id": MASK, "steps": 2}
    rows, by_block = jax.jit(
        lambda: (
            sample(table_denoiser(TABLE), **options),
            blocks.sample(block_denoiser(TABLE, L), **options),
        )
    )()
    np.testing.assert_array_equal(rows, by_block)


def write(denoiser, canvas, key=KEY, **options):
    """`blocks.sample`, compiled: everything but the strategy and the shapes is an argument."""
    options = {"mask_id": MASK, "steps": denoiser.block_size, "trace": True} | options
    out = jax.jit(lambda key, canvas: blocks.sample(denoiser, key, canvas, **options))(key, canvas)
    jax.effects_barrier()
    return out


def uncached(denoiser, keys, canvas, strategy):
    """Block after block, each with everything before it computed again, all blocks at once."""
    size = denoiser.block_size
    count = canvas.shape[1] // size

    @jax.jit
    def write(canvas, block):
        def encode(noisy, t):
            canvases = jax.lax.dynamic_update_slice_in_dim(canvas, noisy, block * size, axis=1)
            hidden = denoiser.encode(canvases, canvas, jnp.ones((len(canvas), count)))
            return jax.tree.map(lambda x: part(x, block), hidden)

        written = sample(
            Denoiser(encode, denoiser.readout, mask_id=MASK), None, part(canvas, block),
            mask_id=MASK, steps=2, strategy=strategy, keys=noise.derive(keys, "block", block),
        )  # fmt: skip
        return jax.lax.dynamic_update_slice_in_dim(canvas, written, block * size, axis=1)

    def part(x, block):
        return jax.lax.dynamic_slice_in_dim(x, block * size, size, axis=1)

    for block in range(count):
        canvas = write(canvas, block)
    return canvas


@pytest.mark.parametrize(
    ("size", "name"),
    [(1, "exact_count"), (2, "confidence, margin"), (4, "path_planning")],
)
def test_the_cache_changes_nothing(size, name):
    canvas, keys = canvas_of(8), jax.random.split(KEY, 6)
    canvas = canvas.at[:, 2:4].set(1)  # a block that is given in all rows is committed, too
    options = {"mask_id": MASK, "steps": 2, "strategy": EVERY[name], "keys": keys}
    plain = uncached(of_any_width(size), keys, canvas, EVERY[name])
    for fused in (False, True):
        denoiser = of_any_width(size, fused=fused)
        write = jax.jit(lambda denoiser=denoiser: blocks.sample(denoiser, None, canvas, **options))
        np.testing.assert_array_equal(write(), plain)
    assert not np.any(plain == MASK)
    np.testing.assert_array_equal(jnp.where(canvas == MASK, MASK, plain), canvas)


def test_a_block_is_committed_once_when_it_is_final_and_nothing_else_is():
    calls = []
    tokens, _ = write(of_any_width(2, calls, fused=True), jnp.full((3, 8), MASK))
    assert [call[0] for call in calls] == ["encode_block"] * 2 + ["advance", "encode_block"] * 3
    committed = [call[1] for call in calls if call[0] == "advance"]
    np.testing.assert_array_equal(np.concatenate(committed, axis=1), tokens[:, :6])
    for what, *arrays in calls:
        if what == "advance":
            assert np.all(arrays[1] == MASK)  # the next block's first step
        else:
            assert arrays[1].min() == arrays[1].max()  # as much is committed in all rows


def test_nothing_is_evaluated_behind_the_last_wanted_mask():
    calls = []
    canvas = jnp.array([[1, MASK, 0, 2, 1, 1, 0, 0], [1, 2, 0, MASK, 1, 1, 0, 0]])
    denoiser = of_any_width(2, calls, fused=True)
    tokens, trace = write(denoiser, canvas)
    assert [call[0] for call in calls] == ["encode_block", "advance"]
    assert trace.evaluations.tolist() == [1, 1]
    np.testing.assert_array_equal(jnp.where(canvas == MASK, MASK, tokens), canvas)
    calls.clear()
    text = jnp.where(canvas == MASK, 1, canvas)
    np.testing.assert_array_equal(write(denoiser, text)[0], text)
    assert calls == []


@pytest.mark.parametrize("fused", [True, False])
def test_what_rows_begin_with_is_committed_ahead(fused):
    """Each row's own, once; and from the first block that any row wants the sampler begins."""
    calls, width = [], 12
    place, prompt = jnp.arange(width)[None], jnp.array([5, 8, 12, 9])[:, None]
    canvas = jnp.where((place < prompt) | (place == 10), place % 3, MASK)
    plain, trace = write(of_any_width(2, fused=fused), canvas)
    tokens, same = write(of_any_width(2, calls, fused, ahead=True), canvas)
    np.testing.assert_array_equal(tokens, plain)
    jax.tree.map(np.testing.assert_array_equal, same, trace)
    (counts,) = (call[1] for call in calls if call[0] == "prefill")
    assert counts.tolist() == [2, 4, 0, 4]  # of a row that wants nothing nothing is committed
    commits = [call[1] for call in calls if call[0] == ("advance" if fused else "extend")]
    assert len(commits) == 3  # blocks 2, 3 and 4 of six, of the rows that have come so far
    np.testing.assert_array_equal(commits[0], tokens[:, 4:6])


def test_text_without_a_wanted_mask_is_not_committed_ahead():
    calls = []
    text = jnp.ones((2, 8), jnp.int32)
    np.testing.assert_array_equal(write(of_any_width(2, calls, ahead=True), text)[0], text)
    assert [(call[0], call[1].tolist()) for call in calls] == [("prefill", [0, 0])]


def certain(end_at, calls=None):
    """Row r writes ones, but the end, 0, at `end_at[r]`; -1 for none."""

    def logits(noisy, clean, t):
        if calls is not None:
            jax.debug.callback(lambda _: calls.append(1), t, ordered=True)
        is_end = jnp.arange(noisy.shape[1])[None] == end_at[:, None]
        return 50.0 * jax.nn.one_hot(jnp.where(is_end, 0, 1), MASK + 1)

    return blocks.as_block_denoiser(logits, 2, MASK)


def test_the_end_of_text_ends_a_row_and_its_cost():
    calls, canvas = [], jnp.full((4, 8), MASK).at[2, 5].set(2).at[3, 1].set(0)
    denoiser = certain(jnp.array([0, 3, 2, -1]), calls)
    tokens, trace = write(denoiser, canvas, end_id=0, pad_id=2)
    assert tokens.tolist() == [
        [0, 2, 2, 2, 2, 2, 2, 2],
        [1, 1, 1, 0, 2, 2, 2, 2],
        [1, 1, 0, 2, 2, 2, 2, 2],
        [1, 0, 1, 1, 1, 1, 1, 1],  # an end that is given ends nothing
    ]
    assert trace.evaluations.tolist() == [2, 4, 4, 7] and len(calls) == 8
    assert np.all((trace.step >= 0) == ((tokens != 2) & (canvas == MASK)))
    assert np.all(trace.log_prob[trace.step < 0] == 0)
    assert trace.step[3].max() == 7 and trace.step[1, :2].max() == 1


def test_sampling_stops_in_the_block_in_which_the_last_row_ends():
    calls = []
    tokens, trace = write(certain(jnp.array([0, 3]), calls), jnp.full((2, 64), MASK), end_id=0)
    assert len(calls) == 4 and trace.evaluations.tolist() == [2, 4]
    assert np.all(tokens[0] == 0) and tokens[1, :4].tolist() == [1, 1, 1, 0]


def test_each_row_may_have_its_own_end_and_steps():
    tokens, trace = write(
        certain(jnp.array([2, 2, -1])), jnp.full((3, 6), MASK), steps=jnp.array([1, 2, 1]),
        end_id=jnp.array([0, -1, 1]), pad_id=2,
    )  # fmt: skip
    assert tokens.tolist() == [[1, 1, 0, 2, 2, 2], [1, 1, 0, 1, 1, 1], [1, 2, 2, 2, 2, 2]]
    assert trace.evaluations.tolist() == [2, 6, 1]


def test_a_rows_text_does_not_depend_on_the_batch():
    canvas, keys = canvas_of(8), jax.random.split(KEY, 6)
    write = jax.jit(
        lambda canvas, keys: blocks.sample(
            of_any_width(2), None, canvas, mask_id=MASK, steps=2, keys=keys, end_id=0
        )
    )
    whole = write(canvas, keys)
    order = jnp.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_array_equal(write(canvas[order], keys[order]), whole[order])
    others = jnp.where(jnp.arange(6)[:, None] == 2, canvas, 1)
    np.testing.assert_array_equal(write(others, keys)[2], whole[2])


def test_masks_that_are_not_wanted_stay_and_are_committed():
    calls = []
    fill = jnp.arange(8)[None] % 4 != 1
    padded = jnp.arange(8)[None] != 7
    canvas = jnp.full((1, 8), MASK)
    tokens, _ = write(of_any_width(2, calls), canvas, steps=1, fill=fill, maskable=padded)
    np.testing.assert_array_equal(tokens == MASK, ~(fill & padded))
    first = next(call[1] for call in calls if call[0] == "extend")
    assert first.tolist() == tokens[:, :2].tolist() and first[0, 1] == MASK


def test_tokens_are_drawn_from_the_shaped_law():
    """At temperature 0 the noise does not matter, with the order fixed."""
    cold = transforms.temperature(of_any_width(2), 0.0)
    run = jax.jit(
        lambda key, denoiser=cold: blocks.sample(
            denoiser, key, jnp.full((2, 8), MASK), mask_id=MASK, steps=2,
            strategy=strategies.left_to_right(),
        )
    )  # fmt: skip
    one, other = run(KEY), run(jax.random.key(1))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one[0], one[1])


@pytest.mark.parametrize("fused", [True, False])
def test_a_temperature_a_row_is_that_temperature_in_the_row(fused):
    plain = of_any_width(2)
    if fused:
        plain = plain._replace(advance=partial(advance, plain))
    run = jax.jit(
        lambda value: blocks.sample(
            transforms.temperature(plain, value), KEY, jnp.full((3, 8), MASK), mask_id=MASK, steps=2
        )
    )
    values = [0.0, 1.0, 3.0]
    alone = [run(jnp.full(3, value))[row] for row, value in enumerate(values)]
    np.testing.assert_array_equal(run(jnp.array(values)), alone)
    assert not np.array_equal(alone, run(jnp.zeros(3)))


def test_parts_have_the_noise_of_their_rows_or_keys():
    canvas, denoiser = canvas_of(4)[:4], of_any_width(2)
    parts = canvas.reshape(2, 2, 4)

    def fill(key, canvas, **of):
        return blocks.sample(denoiser, key, canvas, mask_id=MASK, steps=2, **of)

    with pytest.raises(ValueError, match=r"mapped and the key is not.*give rows.*or keys"):
        jax.vmap(lambda canvas: fill(KEY, canvas))(parts)
    numbers = jnp.arange(4)
    keys = noise.row_keys(KEY, numbers)

    @jax.jit
    def both():
        by_rows = jax.vmap(lambda x, rows: fill(KEY, x, rows=rows))(parts, numbers.reshape(2, 2))
        by_keys = jax.vmap(lambda x, keys: fill(None, x, keys=keys))(parts, keys.reshape(2, 2))
        return by_rows, by_keys, fill(KEY, canvas)

    by_rows, by_keys, whole = both()
    np.testing.assert_array_equal(by_rows.reshape(4, 4), whole)
    np.testing.assert_array_equal(by_keys.reshape(4, 4), whole)


def test_another_number_of_steps_does_not_compile_again():
    traced = []

    @jax.jit
    def run(key, steps):
        traced.append(1)
        return blocks.sample(
            of_any_width(2), key, jnp.full((2, 8), MASK), mask_id=MASK, steps=steps, trace=True
        )

    evaluations = [run(KEY, steps)[1].evaluations.tolist() for steps in (1, 2, 5)]
    assert evaluations == [[4, 4], [8, 8], [8, 8]] and len(traced) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"canvas": jnp.full((2, 7), MASK)}, r"canvas has rows of 7 tokens, .* of 2 .* to 6 or 8"),
        ({"canvas": jnp.full((2, 1), MASK)}, r"canvas has rows of 1 tokens, .* of 2 .* to 2 \(pad"),
        ({"canvas": [[MASK]]}, "canvas is a list: pass an array"),
        ({"steps": 0}, "steps is 0, at least 1 is needed"),
        ({"steps": 2.5}, "steps is 2.5, it must be one whole number"),
        ({"steps": jnp.ones(3, int)}, r"steps must be one whole number, or integers \[2\]"),
        ({"strategy": strategies.greedy}, "strategy is the function greedy: call it"),
        ({"pad_id": 1}, "pad_id is for what follows end_id, which is not given"),
        ({"end_id": MASK}, "end_id and pad_id must be other tokens than the mask, 3"),
        ({"fill": jnp.ones((2, 2), bool)}, r"fill has shape \(2, 2\)"),
        ({"maskable": jnp.ones((2, 8))}, r"maskable must be bool \[B, L\]"),
        ({"rows": jnp.arange(3)}, r"rows has shape \(3,\), it must be \(2,\)"),
        ({"key": None}, "neither of key and keys given"),
        ({"mask_id": 1}, "mask_id is 1, but the denoiser was built with mask_id 3"),
        ({"denoiser": table_denoiser(TABLE)}, "denoiser is a Denoiser, of whole rows: blocks need"),
        ({"denoiser": canvas_of}, "denoiser is the function canvas_of: pass blocks.as_block_denoi"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_computed(change, message):
    arguments = {"denoiser": of_any_width(2), "key": KEY, "canvas": jnp.full((2, 8), MASK)}
    with pytest.raises((TypeError, ValueError), match=f"^{message}") as error:
        jax.eval_shape(lambda: blocks.sample(**arguments | {"mask_id": MASK, "steps": 2} | change))
    assert "\n" not in str(error.value)


def test_a_row_sampler_refuses_a_block_denoiser():
    with pytest.raises(TypeError, match=r"^denoiser is a BlockDenoiser: .*blocks.sample"):
        sample(of_any_width(2), KEY, canvas_of(8), mask_id=MASK)
