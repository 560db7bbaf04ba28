#!/usr/bin/env bash
# bash benchmarks/side_by_side.sh [PART ...]: the figures of docs/performance.md, as JSON lines.
#
#   step       the training step of `owt` and `bert_base` beside the plain one
#   attention  by backend and length
#   sample     an evaluation of the sampler beside a bare forward pass
#   blocks     the training step and the writers of blocks beside full diffusion and a causal model
#   torch      the training step of `owt` and `bert_base` in PyTorch, after JAX has given back the GPU
#   check      the fast paths against plain ones; ends with 1 where they differ
#   memory     remat, scanned layers, logits held at a time
#   large      the training step of `340m` and `1b`
#   loop       the training step of `owt` in the command `train`, which needs grain and ml_collections
#   cpu        the quickstart's step, JAX and PyTorch, on this machine's CPU
#
# By default step, attention, sample and torch. A line {"part": ..., "seconds": ...} follows each.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"

bench() { "${PYTHON:-python3}" -m "benchmarks.$1" "${@:2}"; }

part() {
  case "$1" in
    step)
      bench train_step --shape=owt --plain
      bench train_step --shape=bert_base --plain
      ;;
    attention) bench attention ;;
    sample) bench sample --shape=owt --batches 32 256 --strategies exact_count "confidence(grid=uniform)" ;;
    blocks)
      bench block_training --shape=owt
      bench block_sampling --shape=owt
      bench block_sampling --shape=owt --batches 1 8 --context=1024 --rooms 1024 4096 16384
      ;;
    torch)
      bench torch_twin --shape=owt --attention=cudnn
      bench torch_twin --shape=owt --attention=flash
      bench torch_twin --shape=bert_base --attention=cudnn
      ;;
    check) bench train_step --shape=tiny --dtype=bfloat16 --check --steps=1 ;;
    memory) bench memory --shape=owt ;;
    large)
      bench train_step --shape=340m
      bench train_step --shape=1b
      ;;
    loop) bench loop --shape=owt ;;
    cpu)
      # Both keep freed memory, which the first does by itself.
      local -x MALLOC_MMAP_THRESHOLD_=$((2 ** 30)) MALLOC_TRIM_THRESHOLD_=$((2 ** 31 - 1))
      JAX_PLATFORMS=cpu bench train_step --shape=quickstart --plain
      bench torch_twin --shape=quickstart --device=cpu --compile=default
      bench torch_twin --shape=quickstart --device=cpu --compile=none
      ;;
    *)
      echo "part '$1' must be one of step, attention, sample, blocks, torch, check, memory, large, loop, cpu" >&2
      exit 2
      ;;
  esac
}

for each in "${@:-step attention sample torch}"; do
  # shellcheck disable=SC2086 # the default is four words
  for name in $each; do
    begun=$SECONDS
    part "$name"
    echo "{\"part\": \"$name\", \"seconds\": $((SECONDS - begun))}"
  done
done
