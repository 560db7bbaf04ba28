"""The pure functions' errors say which argument is wrong, and what to pass instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdlm_jax import (
    as_denoiser,
    at_rate,
    causal_likelihood,
    corrupt,
    corrupt_causal,
    corrupt_mlm,
    corrupted_loss,
    diffusion_loss,
    keep_around,
    keep_prefix,
    mlm_loss,
    nelbo,
    sample,
    schedules,
    strategies,
)
from mdlm_jax.diffusion.enumeration import enumerated_nelbo

MASK = 3


def model(tokens, t):
    return jnp.zeros((*tokens.shape, 4))


# Every function with arguments that fit.
GOOD = {
    "denoiser": as_denoiser(model, MASK),
    "key": jax.random.key(0),
    "tokens": jnp.zeros((2, 4), jnp.int32),
    "canvas": jnp.full((2, 4), MASK),
    "mask_id": MASK,
}
CALLS = {
    diffusion_loss: ("denoiser", "key", "tokens", "mask_id"),
    mlm_loss: ("denoiser", "key", "tokens", "mask_id"),
    corrupt: ("key", "tokens", "mask_id"),
    corrupt_mlm: ("key", "tokens", "mask_id", "vocab_size"),
    nelbo: ("denoiser", "key", "tokens", "mask_id", "draws"),
    at_rate: ("denoiser", "key", "tokens", "mask_id", "rate"),
    enumerated_nelbo: ("denoiser", "tokens", "mask_id", "longest"),
    causal_likelihood: ("denoiser", "tokens", "start_id"),
    corrupt_causal: ("tokens", "start_id"),
    sample: ("denoiser", "key", "canvas", "mask_id", "steps", "strategy"),
    keep_prefix: ("key", "maskable"),
    keep_around: ("key", "maskable"),
}
GOOD |= {"vocab_size": 4, "draws": 2, "rate": 0.5, "longest": 4, "start_id": 0, "steps": 2}
GOOD |= {"strategy": strategies.exact_count(), "maskable": jnp.ones((2, 4), bool)}
TAKES_OPTIONS = {  # beside what must be given
    "maskable": set(CALLS) - {keep_prefix, keep_around},
    "rows": set(CALLS) - {enumerated_nelbo, causal_likelihood, corrupt_causal},
    "schedule": {diffusion_loss, corrupt, nelbo, at_rate},
    "fill": {sample},
}
TEXT = r"must be integers \[B, L\], not "
BAD = {
    "a bare function": ("denoiser", model, r"is the function model: pass as_denoiser\(f, mas"),
    "a table": ("denoiser", np.zeros((4, 4)), r"is a ndarray: pass as_denoiser"),
    "a list": ("tokens", [[0, 1], [1, 2]], r"is a list: pass an array, jnp.asarray\(tokens\)"),
    "floats": ("tokens", jnp.zeros((2, 4)), TEXT + r"float32\[2, 4\]$"),
    "a row": ("tokens", jnp.zeros(4, int), TEXT + r"int32\[4\]: of one row pass tokens\[None\]"),
    "no row": ("tokens", jnp.zeros((0, 4), int), r"is empty, int32\[0, 4\]: at least a row"),
    "no token": ("tokens", jnp.zeros((2, 0), int), r"is empty, int32\[2, 0\]: at least a row"),
    "a canvas list": ("canvas", [[3, 3]], r"is a list: pass an array, jnp.asarray\(canvas\)"),
    "an empty canvas": ("canvas", jnp.zeros((0, 4), int), r"is empty, int32\[0, 4\]"),
    "no mask": ("mask_id", None, "is None, it must be one whole number"),
    "the mask's name": ("mask_id", "[MASK]", r"is '\[MASK\]', it must be one whole number"),
    "half a step": ("steps", 2.5, "is 2.5, it must be one whole number"),
    "a maskable list": ("maskable", [[True] * 4] * 2, r"is a list: pass an array"),
    "a maskable of numbers": ("maskable", jnp.ones((2, 4), int), r"must be .* not int32.*!= 0"),
    "another width": ("maskable", jnp.ones((2, 3), bool), r"has shape \(2, 3\), the text has \(2"),
    "fill of a row": ("fill", jnp.ones(4, bool), r"must be bool \[B, L\], .*not bool\[4\]"),
    "too many rows": ("rows", jnp.arange(3), r"has shape \(3,\), it must be \(2,\)"),
    "no call of a schedule": ("schedule", schedules.cosine, r"is the function cosine: call it, "),
    "a schedule's name": ("schedule", "cosine", r"is 'cosine', it must be a Schedule, such as"),
    "no call of a strategy": (
        "strategy", strategies.confidence, r"is the function confidence: call it, strategy=confid"
    ),
    "a strategy's name": ("strategy", "greedy", r"is 'greedy', it must be a Strategy, such as"),
}  # fmt: skip
CASES = [
    pytest.param(function, name, value, message, id=f"{function.__name__}, {case}")
    for case, (name, value, message) in BAD.items()
    for function, taken in CALLS.items()
    if name in taken or function in TAKES_OPTIONS.get(name, ())
    if not (name == "maskable" and name in taken and "has shape" in message)  # which has no other
]


@pytest.mark.parametrize(("function", "name", "value", "message"), CASES)
def test_a_wrong_argument_is_named_with_its_cure(function, name, value, message):
    arguments = {n: GOOD[n] for n in CALLS[function]} | {name: value}
    with pytest.raises((TypeError, ValueError), match=f"^{name} {message}") as error:
        function(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("function", CALLS)
def test_what_is_right_passes_with_numpy_arrays_and_raw_keys_as_with_traced_ones(function):
    """The checks look at shapes and dtypes: they hold while a program is traced."""
    given = {n: GOOD[n] for n in CALLS[function]}
    if "key" in given:
        given["key"] = jax.random.PRNGKey(0)
    arrays = {n: np.asarray(v) for n, v in given.items() if isinstance(v, jax.Array)}
    rest = {n: v for n, v in given.items() if n not in arrays}
    out = jax.eval_shape(lambda arrays: function(**rest, **arrays), arrays)
    with_rows = {"rows": np.arange(2)} if function in TAKES_OPTIONS["rows"] else {}
    jax.eval_shape(lambda: function(**rest, **arrays, **with_rows))
    assert jax.tree.leaves(out)


def test_only_what_was_corrupted_has_a_corrupted_loss():
    with pytest.raises(
        TypeError, match=r"^corrupted is a .*, it must be a Corrupted, such as corrupt"
    ):
        corrupted_loss(GOOD["denoiser"], GOOD["tokens"])
    with pytest.raises(TypeError, match=r"^denoiser is the function model: pass as_denoiser"):
        corrupted_loss(model, corrupt(GOOD["key"], GOOD["tokens"], mask_id=MASK))


def test_what_is_lifted_to_a_denoiser_must_return_logits():
    with pytest.raises(TypeError, match=r"^fn is a denoiser already: pass it on"):
        as_denoiser(GOOD["denoiser"])
    with pytest.raises(TypeError, match=r"^fn is a ndarray, it must be a function"):
        as_denoiser(np.zeros((4, 4)))
    for returned, message in (
        ((jnp.zeros((2, 4, 4)),), r"returned a tuple: it must return float logits \[2, 4, V\]"),
        (jnp.zeros((2, 4)), r"returned float32\[2, 4\]: it must"),
        (jnp.zeros((2, 4, 4), int), r"returned int32\[2, 4, 4\]: it must"),
        (jnp.zeros((4, 2, 4)), r"returned float32\[4, 2, 4\]: it must return float logits \[2, 4"),
    ):
        lifted = as_denoiser(lambda tokens, t, returned=returned: returned, MASK)
        with pytest.raises((TypeError, ValueError), match=message):
            diffusion_loss(lifted, GOOD["key"], GOOD["tokens"], mask_id=MASK)


def test_a_canvas_without_masks_is_itself_eager_and_jitted():
    def write(canvas):
        rest = {n: GOOD[n] for n in CALLS[sample] if n != "canvas"}
        return sample(canvas=canvas, **rest)

    text = jnp.arange(8).reshape(2, 4) % MASK
    np.testing.assert_array_equal(write(text), text)
    np.testing.assert_array_equal(jax.jit(write)(text), text)
