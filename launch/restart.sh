# shellcheck shell=bash
# Sourced by the other launchers: `restarting JOB RESTARTS PAUSE` runs the function JOB, which is one
# try of a whole job, until the job is done.
#
# 0 (done), 2 (bad input) and 76 (the updates are not finite, and would be again) end it. 75 (stopped by
# a signal, all is saved) and every crash start the job again, after PAUSE seconds, at most RESTARTS
# times, unless `python` cannot import mdlm_jax. A signal to the launcher calls the function
# stop_job, and what the job then ends with is final: 75 means that it goes on when started again.

stopping=

say() {
  echo "launch: $*" >&2
}

refuse() {
  echo "error: $*" >&2
  exit 2
}

# require_number NAME VALUE
require_number() {
  case $2 in
    '' | *[!0-9]*) refuse "$1 takes a number, not '$2'" ;;
  esac
}

_on_signal() {
  stopping=1
  stop_job
}

# In short sleeps, so that a signal ends the pause.
_pausing() {
  local i
  for ((i = 0; i < $1; i++)); do
    [ -z "$stopping" ] || return 0
    sleep 1
  done
}

restarting() {
  local job=$1 restarts=$2 pause=$3 try code why
  trap _on_signal TERM INT HUP
  for ((try = 1; ; try++)); do
    code=0
    "$job" || code=$?
    if [ -n "$stopping" ]; then
      # Ended by the signal itself: it came before there was anything to save.
      case $code in 129 | 130 | 143) code=75 ;; esac
      say "stopped; the job ended with code $code"
      return "$code"
    fi
    case $code in
      0) return 0 ;;
      2)
        say "code 2 is bad input: not started again"
        return 2
        ;;
      76)
        say "code 76 says that the updates are not finite: not started again"
        return 76
        ;;
    esac
    if ((try == 1)) && ! why=$(python -c 'import mdlm_jax' 2>&1); then
      say "$(command -v python || echo python) cannot import mdlm_jax (${why##*$'\n'}): not started again"
      return 2
    fi
    if ((try > restarts)); then
      say "the job ended with code $code after $restarts restarts: giving up"
      return "$code"
    fi
    say "the job ended with code $code: restart $try of $restarts in $pause s"
    _pausing "$pause"
    if [ -n "$stopping" ]; then
      say "stopped"
      return 75
    fi
  done
}
