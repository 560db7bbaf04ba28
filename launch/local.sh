#!/usr/bin/env bash
# bash launch/local.sh --processes 2 -- --config=quickstart --workdir=runs/local
#
# Trains with several processes on this machine as one job, and starts the job again when it crashes.
# Needs bash >= 4.4 and mdlm_jax installed: in the environment that is active, else in .venv of the
# repository, else for the `python` on the PATH. What follows -- goes to `python -m mdlm_jax.train`.
#
#   --processes N  processes of the job; the GPUs are shared out evenly between them (default 1: one
#                  process with all GPUs)
#   --restarts N   how often a job that ended with 75 or crashed is started again (default 10)
#   --pause S      seconds before it is started again (default 10)
#   --grace S      when one process fails, seconds that the others have to end (default 10)
#   --dry-run      prints what each process would be started with
#
# Process 0 writes to the terminal too, all write to logs/WORKDIR/process-I.log. Ctrl-C and SIGTERM stop
# the job with all saved, a second one ends it at once. Exit codes: 0 done; 75 stopped, start again to go
# on; 2 bad input; 76 the updates are not finite; else that of the first process that failed.

# shellcheck disable=SC2317,SC2329 # `restarting` calls the functions
set -euo pipefail
# shellcheck source=launch/restart.sh
source "$(dirname "${BASH_SOURCE[0]}")/restart.sh"
environment=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/activate
if [ -z "${VIRTUAL_ENV:-}" ] && [ -f "$environment" ]; then
  # shellcheck disable=SC1090
  source "$environment"
fi

processes=1 restarts=10 pause=10 grace=10 dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --processes | --restarts | --pause | --grace)
      require_number "$1" "${2:-}"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --dry-run)
      dry_run=1
      shift
      ;;
    --help | -h)
      sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) refuse "unknown option $1 (--help tells them; the options of the training come after --)" ;;
  esac
done
((processes > 0)) || refuse "--processes must be at least 1"

workdir=''
for word in "$@"; do
  case $word in --workdir=*) workdir=${word#--workdir=} ;; esac
done
[ -n "$workdir" ] || refuse "--workdir=FOLDER is missing; it comes after --"
# Not within the workdir, which may be in a bucket and has to be empty when a run begins.
logs=logs/${workdir#*://}
logs=${logs//\/\///}
train=(python -m mdlm_jax.train "$@")

# The GPUs that may be used, one a line.
list_gpus() {
  case ${JAX_PLATFORMS:-cuda} in *cuda* | *gpu*) ;; *) return ;; esac
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed '/^$/d'
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=index --format=csv,noheader || true
  fi
}

mapfile -t gpus < <(list_gpus)
share=$((${#gpus[@]} / processes))
if ((${#gpus[@]} % processes)); then
  refuse "--processes $processes: ${#gpus[@]} GPU(s) cannot be shared out evenly between them"
fi

# A port at which nobody listens, below those that the system gives out for connections.
free_port() {
  local port
  while true; do
    port=$((20000 + RANDOM % 10000))
    (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# environment_of I PORT: what tells process I of the others, one NAME=VALUE a line.
environment_of() {
  ((processes > 1)) || return 0
  echo "COORDINATOR_ADDRESS=127.0.0.1:$2"
  echo "NUM_PROCESSES=$processes"
  echo "PROCESS_ID=$1"
  if ((share)); then
    (IFS=, && echo "CUDA_VISIBLE_DEVICES=${gpus[*]:$1*share:share}")
  fi
}

pids=()

# signal_all SIGNAL: to each process, and to what it has started.
signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    kill -s "$1" -- "-$pid" 2>/dev/null || true
  done
}

told=''
stop_job() {
  if [ -z "$told" ]; then
    told=1
    [ -z "${pids[*]}" ] || say "stopping: the job saves first (a second signal ends it at once)"
    signal_all TERM
  else
    signal_all KILL
  fi
}

start_all() {
  local i port variables
  port=$(free_port)
  pids=()
  for ((i = 0; i < processes; i++)); do
    echo "--- $(date '+%F %T'): process $i of $processes" >>"$logs/process-$i.log"
    mapfile -t variables < <(environment_of "$i" "$port")
    # Each leads a group of its own: Ctrl-C reaches the launcher alone, which passes it on once.
    set -m
    if ((i)); then
      env "${variables[@]}" "${train[@]}" </dev/null >>"$logs/process-$i.log" 2>&1 &
    else
      env "${variables[@]}" "${train[@]}" </dev/null >&"$terminal" 2>&1 &
    fi
    set +m
    pids+=($!)
  done
}

report_failure() {
  say "process $1 ended with code $2 ($logs/process-$1.log)"
  (($1 == 0)) || tail -n 5 "$logs/process-$1.log" | sed 's/^/    /' >&2
}

# All processes from start to end. Returns the code of the first that failed (the others may say
# anything once it is gone), else 75 if one was stopped, else 0.
job() {
  local i code answer=0 deadline='' ended=()
  start_all
  [ -z "$stopping" ] || signal_all TERM
  while ((${#ended[@]} < processes)); do
    sleep 0.2
    for i in "${!pids[@]}"; do
      if [ -n "${ended[i]:-}" ] || kill -0 "${pids[i]}" 2>/dev/null; then
        continue
      fi
      ended[i]=1
      code=0
      wait "${pids[i]}" 2>/dev/null || code=$?
      kill -s KILL -- "-${pids[i]}" 2>/dev/null || true # what a crash left behind
      if ((code == 0)); then
        continue
      elif ((code == 75)); then
        ((answer)) || answer=75
      elif [ -z "$deadline" ]; then
        answer=$code
        report_failure "$i" "$code"
        deadline=$((SECONDS + grace))
        [ -n "$stopping" ] || signal_all TERM
      fi
    done
    if [ -n "$deadline" ] && ((SECONDS >= deadline)); then
      signal_all KILL
    fi
  done
  pids=()
  return "$answer"
}

if [ -n "$dry_run" ]; then
  for ((i = 0; i < processes; i++)); do
    mapfile -t variables < <(environment_of "$i" PORT)
    echo "process $i: $(printf '%q ' "${variables[@]}" "${train[@]}")>>$logs/process-$i.log"
  done
  echo "at most $restarts restarts, $pause s apart, on every exit code but 0, 2 and 76"
  exit 0
fi

command -v python >/dev/null || refuse "no python on the PATH: activate the environment of mdlm_jax"
mkdir -p "$logs" || exit 2
exec {terminal}> >(trap '' TERM INT HUP && exec tee -ap "$logs/process-0.log")
tee=$!
code=0
restarting job "$restarts" "$pause" || code=$?
exec {terminal}>&-
wait "$tee" || true
exit "$code"
