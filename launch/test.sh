#!/usr/bin/env bash
# bash launch/test.sh [pytest arguments]
#
# Makes .venv, installs mdlm_jax[dev], and runs every unmarked test: 10 minutes on 2 CPU cores
# (2026-11-27). `bash launch/test.sh -m slow` runs the slow ones, half an hour. Needs Python >= 3.11
# with pip.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh
make_venv dev

if [ $# -eq 0 ]; then
  set -- -m "not slow"
fi
# A worker a core; the tests of a file share what they compile, so they stay together.
JAX_PLATFORMS=cpu python -m pytest -n auto --dist loadfile "$@"
