"""The transformer encoder as the network of a family."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from mdlm_jax.diffusion import Denoiser, corrupted_loss
from mdlm_jax.diffusion.blocks import BlockDenoiser
from mdlm_jax.diffusion.caching import CachedDenoiser
from mdlm_jax.networks import bert, with_cache
from mdlm_jax.networks.attention import fastest, runs_on
from mdlm_jax.runs.experiment import ObjectiveConfig
from mdlm_jax.runs.families.base import Blocks, Cache, Network
from mdlm_jax.training.step import LossFn

Array = jax.Array
PyTree = Any
Config = bert.Config


def configure(fields: Mapping[str, Any]) -> Config:
    """The config of these fields.

    Raises:
      TypeError, ValueError: an unknown field, or values that describe no encoder.
    """
    return Config(**fields)


def pad(config: Config, multiple: int) -> Config:
    """The encoder with its embedding table padded to a multiple of `multiple` rows."""
    if config.padded_vocab % multiple == 0:
        return config
    return dataclasses.replace(config, vocab_multiple=math.lcm(config.vocab_multiple, multiple))


def check_mesh(config: Config, mesh: Mesh) -> None:
    """Raises: ValueError: the tensor axis of the mesh does not divide heads and MLP."""
    tensor = mesh.shape["tensor"]
    for name in ("heads", "mlp_width"):
        if getattr(config, name) % tensor:
            raise ValueError(
                f"mesh tensor={tensor} does not divide model.{name} {getattr(config, name)}"
            )


def for_devices(config: Config, platform: str, *, strict: bool) -> Config:
    """The encoder with an attention backend that runs on the devices of a platform.

    'auto' is decided here for TPUs, which need not be JAX's own devices.

    Args:
      config: the encoder.
      platform: 'cpu', 'gpu' or 'tpu'.
      strict: whether a backend for other devices is an error; else it becomes 'auto'.

    Raises:
      ValueError: it is one, and `strict`.
    """
    if not runs_on(config.attention_backend, platform):
        if strict:
            raise ValueError(
                f"model.attention_backend {config.attention_backend!r} is not for {platform} "
                "devices: take --config.model.attention_backend=xla, which computes the same"
            )
        return dataclasses.replace(config, attention_backend="auto")
    if not strict or config.attention_backend != "auto" or platform != "tpu":
        return config
    heads = (1, config.max_length, config.heads, config.head_dim)
    q = jax.ShapeDtypeStruct(heads, config.compute_dtype)
    backend = fastest(platform, q, lifted=config.global_every > 0)
    return dataclasses.replace(config, attention_backend=backend)


def denoiser(
    params: PyTree,
    config: Config,
    batch: Mapping[str, Array],
    *,
    label: Array | None = None,
    dropout_key: Array | None = None,
) -> Denoiser:
    """The encoder as the denoiser of a batch with its padding."""
    return bert.denoiser(
        params,
        config,
        valid=bert.row_lengths(batch.get("valid")),
        label=label,
        dropout_key=dropout_key,
    )


def check_cache(config: Config, cache: Cache) -> None:
    """Raises: ValueError: the encoder cannot keep that, or the cache is impossible."""
    with_cache.check(config, *cache)


def cached_denoiser(
    params: PyTree,
    config: Config,
    cache: Cache,
    batch: Mapping[str, Array],
    *,
    label: Array | None = None,
) -> CachedDenoiser:
    """The encoder as the denoiser of a batch with its padding, that keeps what `cache` says."""
    valid = bert.row_lengths(batch.get("valid"))
    kind, width, refresh, around = cache
    return bert.cached_denoiser(
        params, config, kind, width, refresh, around=around, valid=valid, label=label
    )


def causal_denoiser(
    params: PyTree, config: Config, start_id: int, *, label: Array | None = None
) -> CachedDenoiser:
    """A causal encoder as the denoiser of a batch; padding, which ends rows, it does not see."""
    return bert.causal_cached_denoiser(params, config, start_id, label=label)


def block_denoiser(
    params: PyTree,
    config: Config,
    blocks: Blocks,
    batch: Mapping[str, Array],
    *,
    label: Array | None = None,
    dropout_key: Array | None = None,
) -> BlockDenoiser:
    """The encoder as the denoiser of the blocks of a batch with its padding."""
    return bert.block_denoiser(
        params,
        config,
        blocks.size,
        valid=bert.row_lengths(batch.get("valid")),
        label=label,
        dropout_key=dropout_key,
        window=blocks.window,
    )


def make_loss(objective: ObjectiveConfig, config: Config) -> LossFn:
    """`(params, key, batch) -> (loss, aux)` of the "corrupted" batch from a family's `prepare`."""
    del objective
    return loss_of(config, denoiser, corrupted_loss)


def loss_of(config: Config, of_batch: Callable, of_corrupted: Callable) -> LossFn:
    """`(params, key, batch) -> (loss, aux)` with the batch's labels, and dropout if there is some.

    Args:
      config: the encoder.
      of_batch: `(params, config, batch, label, dropout_key) -> denoiser`.
      of_corrupted: `(denoiser, batch["corrupted"]) -> (loss, aux)`.
    """
    stochastic = config.dropout > 0 or config.class_dropout > 0

    def loss_fn(params: PyTree, key: Array, batch: PyTree) -> tuple[Array, PyTree]:
        own = of_batch(
            params,
            config,
            batch,
            label=batch["label"] if config.classes else None,
            dropout_key=key if stochastic else None,
        )
        return of_corrupted(own, batch["corrupted"])

    return loss_fn


NETWORK = Network(
    configure=configure,
    init=bert.init,
    logical_axes=bert.logical_axes,
    padded_leaves=bert.padded_leaves,
    pad=pad,
    check_mesh=check_mesh,
    for_devices=for_devices,
    select=bert.select,
    distance_to_head=bert.distance_to_head,
    prepare=bert.prepare,
    denoiser=denoiser,
    check_cache=check_cache,
    cached_denoiser=cached_denoiser,
    causal_denoiser=causal_denoiser,
    block_denoiser=block_denoiser,
)
