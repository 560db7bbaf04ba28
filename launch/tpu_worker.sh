#!/usr/bin/env bash
# bash launch/tpu_worker.sh start|stop|status [--config=... --workdir=...]
#
# What tpu_vm.sh runs on every worker of a TPU, in ~/mdlm_jax. `start` installs mdlm_jax[tpu,gcs,quickstart] into
# .venv (with a Python of its own: the TPU images have 3.10) and leaves launch/local.sh running in the
# background, its output in launch.log.
set -euo pipefail
cd "$(dirname "$0")/.."

running() {
  [ -f launch.pid ] && kill -0 "$(cat launch.pid)" 2>/dev/null
}

install() {
  export PATH=$HOME/.local/bin:$PATH
  command -v uv >/dev/null || python3 -m pip install --quiet --user uv
  [ -x .venv/bin/python ] || uv venv --quiet --python 3.12 .venv
  uv pip install --quiet --python .venv/bin/python -e '.[tpu,gcs,quickstart]'
}

case $1 in
  start)
    shift
    if running; then
      echo "error: a job is running here: stop it first" >&2
      exit 2
    fi
    install
    # shellcheck disable=SC1091
    source .venv/bin/activate
    echo "--- $(date '+%F %T'): $*" >>launch.log
    nohup setsid bash launch/local.sh -- "$@" >>launch.log 2>&1 </dev/null &
    echo $! >launch.pid
    echo "started"
    ;;
  stop)
    if ! running; then
      echo "not running"
      exit 0
    fi
    kill -TERM "$(cat launch.pid)"
    echo "stopping: it saves first"
    ;;
  status)
    if running; then echo "running"; else echo "not running"; fi
    if [ -f launch.log ]; then tail -n 3 launch.log; fi
    ;;
esac
