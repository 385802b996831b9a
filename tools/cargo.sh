#!/usr/bin/env bash
# cargo with the environment of this project: `tools/cargo.sh build --release`. Run `make setup` first.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=tools/common.sh
. "$root/tools/common.sh"

[ -x "$root/.venv/bin/python" ] && [ -d "$root/target/libtorch/lib" ] || {
  echo "cargo.sh: run 'make setup' first" >&2
  exit 1
}
command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"

export PATH
export LIBTORCH="$root/target/libtorch"
LIBCLANG_PATH="$(site_packages "$root/.venv")/clang/native"
export LIBCLANG_PATH
exec cargo "$@"
