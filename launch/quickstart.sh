#!/usr/bin/env bash
# bash launch/quickstart.sh [--config.key=value ...]
#
# Trains a small masked diffusion BERT on English Wikipedia text, evaluates it, generates from it, and
# leaves it all in runs/quickstart. Needs Python >= 3.11 with pip; takes the NVIDIA GPU where there is
# one, else 2 CPU cores (README.md has the times). Started again it goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh

workdir=${MDLM_JAX_WORKDIR:-runs/quickstart}
extras=quickstart
where="2 CPU cores"
training="about 4 minutes"
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
  extras=quickstart,gpu
  where="the GPU"
  training="about a minute"
fi

part() {
  echo "== $1 of 4: $2 ($3)"
}

part 1 "install mdlm_jax[$extras] into .venv" "about a minute, once"
make_venv "$extras"
part 2 "train on $where" "$training"
python -m mdlm_jax.train --config=quickstart --workdir="$workdir" "$@"
part 3 "evaluate on the test split" "less than half a minute"
if [ ! -f "$workdir/evaluation_test.json" ] || [ -n "$(find "$workdir/checkpoints" -newer "$workdir/evaluation_test.json" -print -quit)" ]; then
  python -m mdlm_jax.evaluate --workdir="$workdir" --split=test --draws=4
fi
part 4 "fill gaps and write" "less than half a minute"
python -m mdlm_jax.generate --workdir="$workdir" --steps=64 --save \
  --prompt="The city of [MASK] [MASK]" \
  --prompt="[MASK] [MASK] was an American [MASK] and [MASK] ." \
  --prompt="It is the largest [MASK] in the [MASK] ." \
  --prompt=""

cat <<END

Done: open $workdir/report.html in a browser. What you may do next:

    source .venv/bin/activate
    python -m mdlm_jax.generate --workdir=$workdir --prompt "The river {mask:6} ." --watch
    python -m mdlm_jax.train --config=answers --workdir=runs/answers
    python -m mdlm_jax.prepare --config=quickstart --config.data.files=README.md
END
