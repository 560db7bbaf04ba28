"""The training step of `benchmarks.train_step` in PyTorch, compiled by it.

    python -m benchmarks.torch_twin [--shape=owt] [--device=cuda] [--compile=default]
    python -m benchmarks.torch_twin --shape=quickstart --device=cpu

Prints a JSON line with the fields of `benchmarks.train_step`: the same encoder, exact mask counts,
the vocabulary read out at the slots (or everywhere, `--logits=full`), clipping, fused AdamW, EMA.
Nothing is computed by JAX here, and no GPU memory held by it.
"""

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import building, measure, shapes
from benchmarks.torch_encoder import Encoder, corrupt, full_loss, slots_loss

ATTENTION = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
LOSSES = {"slots": slots_loss, "full": full_loss}
COMPILES = ("default", "max-autotune-no-cudagraphs", "none")


def main(arguments: list[str] | None = None) -> int:
    """Prints the line; returns the exit code."""
    args, shape = _chosen(arguments)
    device = torch.device(args.device)
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    ceiling = matrix_ceiling(device)
    dtype = getattr(torch, shape.encoder.dtype)
    encoder = Encoder(shape.encoder, dtype).to(device)
    step = make_step(encoder, LOSSES[args.logits], args.compile)
    source = itertools.cycle(
        [
            torch.as_tensor(building.random_tokens(seed, shape), device=device).long()
            for seed in range(building.DIFFERENT_BATCHES)
        ]
    )
    with _attention(args.attention):
        begun = time.perf_counter()
        float(step(next(source)))
        seconds = time.perf_counter() - begun
        times = measure.repeated(lambda: step(next(source)), calls=args.steps, wait=float)
        loss = float(step(next(source)))
    read_out = building.slots(shape) if args.logits == "slots" else shape.rows * shape.length
    memory = {}
    if device.type == "cuda":
        memory = {"peak_bytes": torch.cuda.max_memory_allocated()}
    measure.tell(
        "train_step",
        times,
        framework="torch",
        variant=f"{args.logits}, {args.compile}",
        shape=args.shape,
        rows=shape.rows,
        length=shape.length,
        attention_backend=args.attention,
        dtype=shape.encoder.dtype,
        tokens_per_second=shape.rows * shape.length / times.median * 1e3,
        **memory,
        compile_seconds=seconds,
        loss=loss,
        flops=building.counted(shape, read_out, whole=True),
        ceiling=ceiling,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    )
    return 0


def _chosen(arguments: list[str] | None) -> tuple[argparse.Namespace, shapes.Shape]:
    flags = shapes.parser(__doc__)
    add = flags.add_argument
    add("--shape", choices=shapes.NAMES, default="owt", help="Default: %(default)s.")
    add("--rows", type=int, help="Rows of a batch, instead of the shape's.")
    add("--length", type=int, help="Tokens of a row, instead of the shape's.")
    add("--dtype", help="float32 or bfloat16.")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="Default: %(default)s.")
    add("--attention", choices=("any", *ATTENTION), default="any", help="PyTorch's choice: any.")
    add("--compile", choices=COMPILES, default="default", help="Mode of torch.compile.")
    add("--logits", choices=tuple(LOSSES), default="slots", help="Default: %(default)s.")
    add("--steps", type=int, default=20, help="Of a repetition. Default: %(default)s.")
    args = flags.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        flags.error("--device=cuda: PyTorch finds none here, take --device=cpu")
    if args.steps < 1:
        flags.error(f"--steps={args.steps}: must be at least 1")
    try:
        shape = shapes.shape(args.shape, rows=args.rows, length=args.length, dtype=args.dtype)
    except ValueError as error:
        flags.error(f"--{error}")
    return args, shape


def make_step(
    encoder: Encoder, loss_of: Callable[[Encoder, Any], Tensor], mode: str
) -> Callable[[Tensor], Tensor]:
    """`step(tokens i64[B, L]) -> loss`: it changes the encoder, its optimizer and its EMA.

    Args:
      encoder: the network.
      loss_of: `slots_loss` or `full_loss`.
      mode: of `torch.compile`, or "none".
    """
    params = list(encoder.parameters())
    decayed = [p for p in params if p.ndim == 2]
    kept = [p for p in params if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": kept, "weight_decay": 0.0}],
        lr=3e-4,
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.01,
        fused=True,
    )
    ema = [p.detach().clone() for p in params]

    def forward(tokens: Tensor) -> Tensor:
        return loss_of(encoder, corrupt(tokens, encoder.config.mask_id))

    if mode != "none":
        forward = torch.compile(forward, mode=mode, dynamic=False)

    def step(tokens: Tensor) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = forward(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, params, 1 - building.EMA_DECAY)
        return loss.detach()

    return step


def matrix_ceiling(device: torch.device) -> measure.Ceiling:
    """`measure.matrix_ceiling`, by PyTorch."""
    on_cpu = device.type == "cpu"
    size, dtype, calls = (1024, torch.float32, 5) if on_cpu else (8192, torch.bfloat16, 50)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = measure.repeated(lambda: left @ right, calls=calls, wait=lambda out: float(out[0, 0]))
    return measure.ceiling_of(times, size, str(dtype).removeprefix("torch."))


def _attention(name: str) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if name == "any" else sdpa_kernel(ATTENTION[name])


if __name__ == "__main__":
    sys.exit(main())
