#!/usr/bin/env bash
# Bring what the system lacks: Python's venv module, libgomp (LightGBM links the system's), and the
# commands that are named after the interpreter (COMMAND or COMMAND=PACKAGE). Installs with apt-get
# where it may; otherwise says what to install.
set -euo pipefail
python=${1:-python3}
shift || true

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
  echo "Headrace needs Python 3.11 to 3.13, $python is $("$python" --version 2>&1); try: make PYTHON=python3.11 …" >&2
  exit 1
fi

missing=()
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# The linker's own search, so that a library in any of its folders counts.
"$python" -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null || missing+=(libgomp1)
for command in "$@"; do
  command -v "${command%%=*}" >/dev/null || missing+=("${command#*=}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "installing ${missing[*]}" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "missing on this system: ${missing[*]}; install them, for example: sudo apt-get install ${missing[*]}" >&2
  exit 1
fi
