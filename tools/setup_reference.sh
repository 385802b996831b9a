#!/usr/bin/env bash
# Makes the virtual environment with diffusers for `make parity` and `make bench`. An existing environment
# (REFERENCE_VENV) is used without changes.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=tools/common.sh
. "$root/tools/common.sh"

own="$root/.venv-reference"
venv="${REFERENCE_VENV:-$own}"
requirements="$root/tools/reference/requirements.txt"
stamp="$venv/.setup-stamp"

if [ "$venv" != "$own" ]; then
  [ -x "$venv/bin/python" ] || { echo "setup: REFERENCE_VENV=$venv holds no bin/python" >&2; exit 1; }
  exit 0
fi
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$(sha256sum <"$requirements")" ]; then
  exit 0
fi
echo "setup: installing diffusers and its dependencies into .venv-reference (about 3 GB)"
[ -x "$venv/bin/python" ] || "$(find_python)" -m venv "$venv"
pip_install_tree "$venv" "$requirements"
sha256sum <"$requirements" >"$stamp"
