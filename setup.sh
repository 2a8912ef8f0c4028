#!/usr/bin/env bash
# Create or update .venv from requirements.txt and constraints.txt, then run COMMAND inside it.
#
#   ./setup.sh [--restart] [COMMAND ...]
#
# --restart builds .venv anew. COMMAND runs in the repository's folder. Up to date, this takes no time.
# PYTHON=/path/to/python3 chooses the interpreter; pip's own settings (index, mirror, proxy) are respected.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
venv=$root/.venv
stamp=$venv/.setup-complete     # holds what was installed; written last
started=$venv/.setup-started    # there while an installation is under way
log=$venv/setup.log
needed_gb=4
restart=

fail() {
  echo "error: $*" >&2
  exit 2
}

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }

# What an up-to-date environment was made from: both files and the interpreter's version.
wanted() {
  "$venv/bin/python" - "$root/requirements.txt" "$root/constraints.txt" <<'PY' 2>/dev/null
import hashlib, pathlib, sys
print(sys.version.split()[0], *(hashlib.sha256(pathlib.Path(p).read_bytes()).hexdigest() for p in sys.argv[1:]))
PY
}

up_to_date() { [ -f "$stamp" ] && [ ! -e "$started" ] && [ "$(cat "$stamp")" = "$(wanted)" ]; }

find_python() {
  local first=${PYTHON:-python3} candidate
  for candidate in "$first" ${PYTHON:+""} python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] || break # PYTHON names the only candidate
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  if command -v "$first" >/dev/null 2>&1; then
    fail "$first is $("$first" -V 2>&1 | head -n 1), but Python 3.11 or newer is needed:" \
      "install it (e.g. apt-get install python3.11 python3.11-venv), or name it: PYTHON=/path/to/python3 ./setup.sh"
  fi
  fail "$first is missing: install Python 3.11 or newer (e.g. apt-get install python3 python3-venv)," \
    "or name it: PYTHON=/path/to/python3 ./setup.sh"
}

check_disk() {
  local free_kb
  free_kb=$(df -Pk "$root" | awk 'NR == 2 { print $4 }')
  if [ "$free_kb" -lt $((needed_gb * 1024 * 1024)) ]; then
    fail "not enough disk space in $root: about $needed_gb GB are needed, $((free_kb / 1024)) MB are free:" \
      "free some space and run ./setup.sh again"
  fi
}

explain_pip() {
  if grep -qi "no space left on device" "$log"; then
    fail "the disk of $root is full: free about $needed_gb GB and run ./setup.sh again"
  fi
  # pip downloads everything before it installs anything, so what is there can be built on.
  rm -f "$started"
  if grep -qiE "NewConnectionError|ConnectTimeout|name resolution|Network is unreachable|ProxyError|Connection (refused|reset|aborted)|Read timed out|No route to host" "$log"; then
    fail "the package index cannot be reached: connect to the network (or point pip to a mirror:" \
      "PIP_INDEX_URL, PIP_FIND_LINKS) and run ./setup.sh again; details in $log"
  fi
  fail "pip could not install the requirements: $(grep -m 1 '^ERROR' "$log" || echo "see $log"); details in $log"
}

# Whether what is in .venv can be built on: an installation that was not cut short, with a working pip.
usable() { [ -d "$venv" ] && [ ! -e "$started" ] && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }

install() {
  local python
  if [ -n "$restart" ] || ! usable; then
    python=$(find_python) || exit
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
      fail "$python has no venv module: install it (e.g. apt-get install python3-venv) and run ./setup.sh again"
    check_disk
    if [ -d "$venv" ]; then
      [ -n "$restart" ] || echo "setup: the last installation did not finish; starting afresh"
      rm -rf "$venv"
    fi
    echo "setup: creating .venv with $("$python" -V)"
    mkdir "$venv"
    touch "$started"
    "$python" -m venv "$venv" || fail "$python could not create $venv (see above)"
  fi
  touch "$started"
  echo "setup: installing the pinned requirements (once, a few minutes)"
  # One call, so that every package sees the same torch; --progress-bar keeps pip quiet in logs.
  if ! PIP_USER=0 "$venv/bin/python" -m pip install --disable-pip-version-check --retries 2 --progress-bar off \
    -r "$root/requirements.txt" -c "$root/constraints.txt" >"$log" 2>&1; then
    explain_pip
  fi
  "$venv/bin/python" -m pip check >>"$log" 2>&1 || fail "installed packages contradict each other; see $log"
  wanted >"$stamp.new"
  mv "$stamp.new" "$stamp"
  rm -f "$started"
  echo "setup: ready"
}

case "${1:-}" in
  -h | --help)
    usage
    exit 0
    ;;
  --restart)
    shift
    restart=yes
    ;;
  -*) fail "unknown option $1: usage is ./setup.sh [--restart] [COMMAND ...]" ;;
esac

{ [ -z "$restart" ] && up_to_date; } || install

[ $# -gt 0 ] || exit 0
export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
unset PYTHONHOME
cd "$root"
command -v "$1" >/dev/null 2>&1 || fail "$1: no such command in .venv or on the PATH"
exec "$@"
