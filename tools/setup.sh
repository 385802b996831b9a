#!/usr/bin/env bash
# Makes .venv (pinned packages) and target/libtorch (the folder that torch-sys links against). Safe to run at any time:
# if there is nothing to do, it neither starts pip nor uses the network.
#
#   PYTHON=/path/to/python3.11   the interpreter to make .venv from (default: the first of python3.11, python3.12,
#                                python3 that is 3.11 or 3.12)
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
libtorch="$root/target/libtorch"
requirements="$root/tools/requirements.txt"
stamp="$venv/.setup-stamp"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# shellcheck source=tools/common.sh
. "$root/tools/common.sh"

check_system() {
  local missing=()
  have_cargo || missing+=("cargo 1.88 or later (from rustup, or your distribution)")
  command -v g++ >/dev/null || command -v c++ >/dev/null || missing+=("a C++ compiler (Debian and Ubuntu: g++)")
  [ "$(uname -sm)" = "Linux x86_64" ] || die "the pinned libtorch and tritonserver are for Linux on x86_64, this is $(uname -sm)"
  if [ ! -x "$venv/bin/python" ]; then
    find_python >/dev/null || missing+=("Python 3.11 or 3.12 (Debian and Ubuntu: python3), or PYTHON=<path>")
    if find_python >/dev/null && ! "$(find_python)" -c 'import venv, ensurepip' 2>/dev/null; then
      missing+=("the venv module of $(find_python) (Debian and Ubuntu: python3-venv)")
    fi
  fi
  if [ "${#missing[@]}" -gt 0 ]; then
    printf 'setup: missing on this system:\n' >&2
    printf '  - %s\n' "${missing[@]}" >&2
    exit 1
  fi
}

# Identifies the inputs of the environment. The path is one of them: the scripts of a virtual environment contain it.
fingerprint() {
  { cat "$requirements"; printf '%s\n' "$root"; "$venv/bin/python" -VV; } | sha256sum | cut -d' ' -f1
}

install_packages() {
  if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    say "making .venv with $(find_python)"
    "$(find_python)" -m venv --clear "$venv"
  fi
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; then
    return
  fi
  say "installing the pinned packages into .venv (the first time about 700 MB are downloaded)"
  pip_install "$venv" "$requirements"
  fingerprint >"$stamp"
}

# link WANTED AT: makes AT a symbolic link to WANTED, untouched if it already leads there.
link() {
  [ -e "$1" ] || die "$1 is missing; remove .venv and run this again"
  if [ "$(readlink -f "$2" 2>/dev/null || true)" != "$(readlink -f "$1")" ]; then
    rm -rf "$2"
    ln -s "$1" "$2"
  fi
}

link_libtorch() {
  local site name script='INPUT(libtorch_cpu.so)'
  site="$(site_packages "$venv")"
  mkdir -p "$libtorch/lib"
  link "$site/torch/include" "$libtorch/include"
  for name in libc10.so libtorch_cpu.so libgomp.so.1; do
    link "$site/torch/lib/$name" "$libtorch/lib/$name"
  done
  for name in libcudart.so.13 libcupti.so.13; do
    link "$site/nvidia/cu13/lib/$name" "$libtorch/lib/$name"
  done
  # torch-sys asks the linker for -ltorch. The wheel's libtorch.so needs libtorch_cuda.so, and so all of CUDA. This linker
  # script replaces it: CUDA is opened at run time, and only on a machine with a GPU.
  if [ "$(cat "$libtorch/lib/libtorch.so" 2>/dev/null || true)" != "$script" ]; then
    printf '%s\n' "$script" >"$libtorch/lib/libtorch.so"
  fi
}

check_system
install_packages
link_libtorch
