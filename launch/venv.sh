# shellcheck shell=bash
# Sourced by the other launchers: `make_venv EXTRA` makes .venv with mdlm_jax[EXTRA], and activates it.
# Needs Python >= 3.11 with pip; uv is used where it is installed. A second call with the same
# pyproject.toml installs nothing.

find_python() {
  local python
  for python in python3 python3.13 python3.12 python3.11 python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  echo "error: no Python >= 3.11 found on the PATH" >&2
  return 1
}

# Runs a command that is long silent, and says on stderr how far it is: seconds, and packages that are
# installed; on a terminal over and over in one line, elsewhere every 15 seconds.
with_progress() {
  local start=$SECONDS ended=0 wait=15 end=$'\n' pid code=0
  if [ -t 2 ]; then
    wait=1 end=$'\r'
  fi
  "$@" &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    ended=$((SECONDS - start))
    if [ $((ended % wait)) -eq 0 ]; then
      printf 'installing: %d s, %d packages are there%s' "$ended" "$(installed)" "$end" >&2
    fi
  done
  wait "$pid" || code=$?
  [ ! -t 2 ] || echo >&2
  return "$code"
}

installed() {
  find .venv -maxdepth 5 -name '*.dist-info' 2>/dev/null | wc -l
}

make_venv() {
  local extra=$1 python stamp wanted
  wanted="$extra $(cksum <pyproject.toml)"
  stamp=.venv/.mdlm_jax
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    python=$(find_python)
    if command -v uv >/dev/null; then
      [ -x .venv/bin/python ] || uv venv --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" .venv
      with_progress uv pip install --quiet --python .venv/bin/python -e ".[$extra]"
    else
      [ -x .venv/bin/pip ] || "$python" -m venv .venv
      with_progress .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extra]"
    fi
    echo "$wanted" >"$stamp"
  fi
  # shellcheck disable=SC1091
  source .venv/bin/activate
}
