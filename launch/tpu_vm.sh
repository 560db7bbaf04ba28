#!/usr/bin/env bash
# bash launch/tpu_vm.sh start --tpu my-pod --zone us-west4-a -- --config=lm1b --workdir=gs://my-bucket/lm1b
#
# Trains on all workers of a Cloud TPU, in the background, each started again when it crashes. Needs
# gcloud, logged in, with a project and the TPU API (`gcloud auth login`, `gcloud config set project P`,
# `ssh-add ~/.ssh/google_compute_engine`), a TPU VM, and a bucket that it may write. Run it from anywhere
# in the repository: mdlm_jax, configs and launch are copied as they are. MDLM_JAX_CACHE=gs://BUCKET/...
# in the environment of `start` is that of all workers.
#
#   create --type v5litepod-256 [-- FLAGS]   makes the TPU; FLAGS go to gcloud, such as --spot
#   start -- --config=... --workdir=...      copies the code, installs it, starts the training
#   status                                   says of each worker if it runs, and its last lines
#   logs                                     shows what worker 0 writes, until Ctrl-C
#   stop                                     has the job save and stop; start goes on from there
#   delete                                   gives the TPU back
#
#   --tpu NAME      a TPU VM, or
#   --queued NAME   a queued resource: --slices slices, which train as one job
#   --zone ZONE     of both (default: that of gcloud's config)
#   --slices N      of `create --queued` (default 1)
#   --dry-run       prints the gcloud commands and runs none
set -euo pipefail
cd "$(dirname "$0")/.."

refuse() {
  echo "error: $* (--help tells more)" >&2
  exit 2
}

# The words as one would type them.
quoted() {
  local word line=''
  for word; do
    case $word in *[!A-Za-z0-9_@%+=:,./-]*) word=${word@Q} ;; esac
    line+=" $word"
  done
  echo "${line# }"
}

# Only prints it in a dry run.
run() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
  else
    "$@"
  fi
}

command=${1:-}
case $command in
  create | start | status | logs | stop | delete) shift ;;
  --help | -h)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  *) refuse "the first word is create, start, status, logs, stop or delete, not '$command'" ;;
esac

name='' kind=tpu-vm type='' slices=1 zone=() dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --tpu | --queued | --zone | --type | --slices)
      [ -n "${2:-}" ] || refuse "$1 takes a value"
      case $1 in
        --tpu) name=$2 kind=tpu-vm ;;
        --queued) name=$2 kind=queued-resources ;;
        --zone) zone=(--zone="$2") ;;
        --type) type=$2 ;;
        --slices) slices=$2 ;;
      esac
      shift 2
      ;;
    --dry-run)
      dry_run=1
      shift
      ;;
    --)
      shift
      break
      ;;
    *) refuse "unknown option $1" ;;
  esac
done
[ -n "$name" ] || refuse "--tpu NAME or --queued NAME is missing"
[ -n "$dry_run" ] || command -v gcloud >/dev/null || refuse "gcloud is not installed"

tpus=(gcloud compute tpus "$kind")
workers=(--worker=all)
first=(--worker=0)
if [ "$kind" = queued-resources ]; then
  workers+=(--node=all)
  first+=(--node=0)
fi

on_all() {
  run "${tpus[@]}" ssh "$name" "${zone[@]}" "${workers[@]}" --command="$1"
}

create() {
  local image
  case $type in
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    v4-* | v3-* | v2-*) image=tpu-ubuntu2204-base ;;
    *) refuse "--type TYPE is that of a Cloud TPU, such as v5litepod-256, v5p-256 or v6e-256, not '$type'" ;;
  esac
  if [ "$kind" = tpu-vm ]; then
    [ "$slices" = 1 ] || refuse "--slices $slices: only a queued resource (--queued NAME) has several"
    run "${tpus[@]}" create "$name" "${zone[@]}" --accelerator-type="$type" --version="$image" "$@"
    return
  fi
  local nodes=(--node-id="$name")
  [ "$slices" = 1 ] || nodes=(--node-count="$slices" --node-prefix="$name")
  run "${tpus[@]}" create "$name" "${zone[@]}" --accelerator-type="$type" --runtime-version="$image" \
    "${nodes[@]}" "$@"
  echo "in the queue; ready to start when this says ACTIVE:" >&2
  echo "  $(quoted "${tpus[@]}" describe "$name" "${zone[@]}") --format='value(state.state)'" >&2
}

start() {
  case " $* " in
    *" --workdir=gs://"*) ;;
    *) refuse "--workdir=gs://BUCKET/... is missing (after --): all workers write there" ;;
  esac
  folder=$(mktemp -d)
  trap 'rm -r "$folder"' EXIT
  run tar -czf "$folder/mdlm_jax.tar.gz" --exclude=__pycache__ \
    pyproject.toml README.md LICENSE mdlm_jax configs launch
  run "${tpus[@]}" scp "$folder/mdlm_jax.tar.gz" "$name:" "${zone[@]}" "${workers[@]}"
  local cache=''
  case ${MDLM_JAX_CACHE:-} in gs://*) cache="MDLM_JAX_CACHE=$(quoted "$MDLM_JAX_CACHE") " ;; esac
  on_all "mkdir -p mdlm_jax && tar -xzf mdlm_jax.tar.gz -C mdlm_jax && ${cache}bash mdlm_jax/launch/tpu_worker.sh start $(quoted "$@")"
}

case $command in
  create) create "$@" ;;
  start) start "$@" ;;
  status) on_all "bash mdlm_jax/launch/tpu_worker.sh status" ;;
  stop) on_all "bash mdlm_jax/launch/tpu_worker.sh stop" ;;
  logs)
    run "${tpus[@]}" ssh "$name" "${zone[@]}" "${first[@]}" --command="tail -n 100 -F mdlm_jax/launch.log"
    ;;
  delete)
    if [ "$kind" = tpu-vm ]; then
      run "${tpus[@]}" delete "$name" "${zone[@]}"
    else
      run "${tpus[@]}" delete "$name" "${zone[@]}" --force
    fi
    ;;
esac
