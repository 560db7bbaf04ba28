"""The fast paths against plain ones, on the device at hand, as JSON lines that tell the difference.

The loss: read out at the slots alone, in chunks, its gradient taken in the forward pass; against
logits of every position. In float32, matrix products at the highest precision.

Attention: a backend in bfloat16 against the whole matrix of scores in float32, under every mask
there is. A difference is relative to the largest value; only queries that are valid are compared.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import building, shapes
from mdlm_jax.diffusion import corrupt, corrupted_loss
from mdlm_jax.diffusion.processes.corruption import Corrupted
from mdlm_jax.networks import bert
from mdlm_jax.networks.attention import Mask, attention, attention_mask

Array = jax.Array
PyTree = Any

# The loss: sums in another order. Attention: bfloat16 has 8 bits, and gradients are sums of what
# was rounded to them.
LOSS_TOLERANCE = 1e-4
ATTENTION_TOLERANCE = {"values": 2e-2, "gradients": 4e-2}
LENGTHS = (96, 129)


def run_all(backend: str, lengths: tuple[int, ...] = LENGTHS) -> bool:
    """Prints a line for the worst of each kind of comparison; returns whether all hold."""
    passed = True
    for differences in (loss_differences(), attention_differences(backend, lengths)):
        told = list(differences)
        for part in dict.fromkeys(line["part"] for line in told):
            alike = [line for line in told if line["part"] == part]
            worst = next((x for x in alike if not _holds(x)), None)
            worst = worst or max(alike, key=lambda line: line["difference"])
            passed &= _holds(worst)
            worst |= {"comparisons": len(alike), "passed": _holds(worst)}
            print(json.dumps({"figure": "check", **worst}), flush=True)
    return passed


def _holds(line: dict[str, Any]) -> bool:
    return line["difference"] <= line["tolerance"]  # NaN is not


def loss_differences() -> Iterator[dict[str, Any]]:
    """Of the loss and of its gradient by all parameters, in one chunk and in several."""
    shape = shapes.shape("tiny", length=33, layers=1)
    params = bert.init(jax.random.key(0), shape.encoder)
    tokens = jnp.asarray(building.random_tokens(0, shape))
    valid = jnp.arange(shape.length) < jnp.asarray([33, 20, 7, 26])[:, None]
    parts = jnp.broadcast_to(jnp.arange(shape.length) // 16, tokens.shape)
    cases = {"none": {}, "padding, segments": {"valid": valid, "segment_ids": parts}}
    for masks, seen in cases.items():
        corrupted = corrupt(
            jax.random.key(1),
            tokens,
            mask_id=shape.encoder.mask_id,
            maskable=seen.get("valid"),
        )
        reference = _loss_and_gradient(full_logits_loss, params, shape.encoder, corrupted, seen)
        for chunks, logits in (("one", None), ("several", 2**13)):
            with building.logits_at_a_time(logits):
                ours = _loss_and_gradient(slots_loss, params, shape.encoder, corrupted, seen)
            for part, a, b in zip(("values", "gradients"), ours, reference, strict=True):
                yield {
                    "of": "loss",
                    "part": part,
                    "masks": masks,
                    "chunks": chunks,
                    "difference": difference(a, b),
                    "tolerance": LOSS_TOLERANCE,
                }


def slots_loss(params: PyTree, encoder: bert.Config, corrupted: Corrupted, seen: dict) -> Array:
    """The product's."""
    return corrupted_loss(bert.denoiser(params, encoder, **seen), corrupted)[0]


def full_logits_loss(
    params: PyTree, encoder: bert.Config, corrupted: Corrupted, seen: dict
) -> Array:
    """The same from logits of every position, by optax's cross-entropy."""
    rows, length = corrupted.canvas.shape
    group = jnp.arange(len(corrupted.positions))[:, None] * (rows // len(corrupted.positions))
    at = (group * length + corrupted.positions).reshape(-1)
    weights = jnp.zeros(rows * length).at[at].add(corrupted.weights.reshape(-1))
    targets = (
        jnp.zeros(rows * length, jnp.int32)
        .at[at]
        .max(jnp.where(corrupted.weights > 0, corrupted.targets, 0).reshape(-1))
    )
    logits = bert.logits(params, encoder, corrupted.canvas, **seen)
    logits = logits.at[..., encoder.mask_id].set(-jnp.inf).reshape(rows * length, -1)
    return weights @ optax.softmax_cross_entropy_with_integer_labels(logits, targets)


def _loss_and_gradient(loss: Callable, params: PyTree, encoder: bert.Config, *args: Any) -> tuple:
    with jax.default_matmul_precision("highest"):
        return jax.jit(jax.value_and_grad(lambda params: loss(params, encoder, *args)))(params)


def attention_differences(
    backend: str, lengths: tuple[int, ...] = LENGTHS
) -> Iterator[dict[str, Any]]:
    """Of the values and of the gradients by q, k and v, for each mask and length."""
    for length in lengths:
        rows, heads, dim = 2, 2, 64
        keys = jax.random.split(jax.random.key(length), 4)
        q, k, v, slope = (jax.random.normal(key, (rows, length, heads, dim)) for key in keys)
        valid = jnp.arange(length) < jnp.asarray([[length], [length // 2 + 1]])
        segments = jnp.broadcast_to(jnp.arange(length) // 40, (rows, length))
        masks = {
            "full": Mask(),
            "causal": Mask("causal"),
            "window": Mask("local", 5),
            "padding": Mask(valid=valid),
            "padding, by lengths": Mask(valid=valid.sum(1, dtype=jnp.int32)),
            "segments": Mask(segment_ids=segments),
            "causal, padding": Mask("causal", valid=valid),
            "window, segments": Mask("local", 5, segment_ids=segments),
        }
        for name, mask in masks.items():
            # What comes out at padding means nothing.
            slopes = slope if mask.valid is None else slope * valid[..., None, None]
            with jax.default_matmul_precision("highest"):
                right = _values_and_gradients(partial(plain_attention, mask), slopes, q, k, v)
            ours = partial(attention, mask=mask, backend=backend)
            fast = _values_and_gradients(ours, *_rounded((slopes, q, k, v)))
            if mask.valid is not None:
                fast[0], right[0] = (x[0] * valid[..., None, None] for x in (fast, right))
            for part, a, b in zip(("values", "gradients"), fast, right, strict=True):
                yield {
                    "of": f"attention, {backend}",
                    "part": part,
                    "masks": name,
                    "length": length,
                    "difference": difference(a, b),
                    "tolerance": ATTENTION_TOLERANCE[part],
                }


def plain_attention(mask: Mask, q: Array, k: Array, v: Array) -> Array:
    """`softmax(q k^T / sqrt(d)) v` over all scores of a row, the mask's as a matrix."""
    seen = attention_mask(length=q.shape[1], **mask._asdict())
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k) / math.sqrt(q.shape[-1])
    scores = scores if seen is None else jnp.where(seen, scores, -1e30)
    return jnp.einsum("bhlm,bmhd->blhd", jax.nn.softmax(scores), v)


def _values_and_gradients(attend: Callable, slopes: Array, *qkv: Array) -> list:
    @jax.jit
    def both(slopes, *qkv):
        out, pull = jax.vjp(attend, *qkv)
        return [out, pull(slopes)]

    return both(slopes, *qkv)


def _rounded(arrays: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), arrays)


def difference(ours: PyTree, reference: PyTree) -> float:
    """The largest over the leaves, of `max |ours - reference| / max |reference|`; NaN if one is."""

    def of_leaf(a: Array, b: Array) -> Array:
        b = b.astype(jnp.float32)
        scale = jnp.maximum(jnp.abs(b).max(), jnp.finfo(jnp.float32).tiny)
        return jnp.abs(a.astype(jnp.float32) - b).max() / scale

    return float(jnp.stack(jax.tree.leaves(jax.tree.map(of_leaf, ours, reference))).max())
