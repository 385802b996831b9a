#!/usr/bin/env bash
# Makes .venv-bench with the peers of the benches (OpenVINO, stable-diffusion.cpp) and matplotlib. It also finds the
# packages of the reference environment (REFERENCE_VENV), which stays as it is.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=tools/common.sh
. "$root/tools/common.sh"

reference="${REFERENCE_VENV:-$root/.venv-reference}"
venv="$root/.venv-bench"
requirements="$root/tools/requirements-bench.txt"
stamp="$venv/.setup-stamp"

fingerprint() {
  { cat "$requirements"; printf '%s\n' "$root" "$reference"; "$reference/bin/python" -VV; } | sha256sum
}

if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null || true)" = "$(fingerprint)" ]; then
  exit 0
fi
echo "setup: installing the peers of the benches into .venv-bench (100 MB are downloaded)"
"$reference/bin/python" -m venv --clear "$venv"
pip_install "$venv" "$requirements"
# Own packages come first.
site_packages "$reference" >"$(site_packages "$venv")/reference.pth"
fingerprint >"$stamp"
