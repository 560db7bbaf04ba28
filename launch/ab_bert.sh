#!/usr/bin/env bash
# bash launch/ab_bert.sh [WORKDIR [FOLDER]]
#
# BERT in one step against the same weights in 64: registers both as versions of the run (runs/quickstart),
# leaves words out of its test split, and compares what the two fill in. FOLDER (ab_bert) gets the prompts,
# the figures and the picture. Needs an environment with mdlm_jax[registry]: `source .venv/bin/activate`.
set -euo pipefail

workdir=${1:-runs/quickstart}
folder=${2:-ab_bert}
name=$(basename "$workdir")
mkdir -p "$folder"

register() {
  python -m mdlm_jax.registry register --workdir="$workdir" --name="$name" --steps="$1" | tee /dev/stderr |
    sed -n 's|.*\(models:/[^,]*\),.*|\1|p'
}

one=$(register 1)
many=$(register 64)
PYTHONPATH="$(dirname "$0")/..${PYTHONPATH:+:$PYTHONPATH}" \
  python -m benchmarks.gaps --workdir="$workdir" --output="$folder/gaps.jsonl"
python -m mdlm_jax.ab --a="$one" --b="$many" --prompts="$folder/gaps.jsonl" --output="$folder"
