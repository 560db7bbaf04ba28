#!/usr/bin/env bash
# bash launch/quickstart.sh [--config.key=value ...]
#
# Trains a small masked diffusion BERT on English Wikipedia text, evaluates it, generates from it, and
# leaves it all in runs/quickstart. Needs Python >= 3.11 with pip and 2 CPU cores; it took 4 min
# 23 s with installing (README.md). Started again it goes on where it was stopped, or says that it is done.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh
make_venv quickstart

workdir=${MDLM_JAX_WORKDIR:-runs/quickstart}
python -m mdlm_jax.train --config=quickstart --workdir="$workdir" "$@"
if [ ! -f "$workdir/evaluation_test.json" ] || [ -n "$(find "$workdir/checkpoints" -newer "$workdir/evaluation_test.json" -print -quit)" ]; then
  python -m mdlm_jax.evaluate --workdir="$workdir" --split=test --draws=4
fi
python -m mdlm_jax.generate --workdir="$workdir" --steps=64 --save \
  --prompt="The city of [MASK] [MASK]" \
  --prompt="[MASK] [MASK] was an American [MASK] and [MASK] ." \
  --prompt="It is the largest [MASK] in the [MASK] ." \
  --prompt=""
echo "open $workdir/report.html in a browser"
