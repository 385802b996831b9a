#!/usr/bin/env bash
# Puts the built library and what it links into dist/backends/diffusion, a folder that tritonserver serves as it is:
# the library's rpath is $ORIGIN, so that no LD_LIBRARY_PATH is needed. CUDA=1 adds libtorch's CUDA libraries in cuda/,
# where an instance on a GPU looks for them. The command goes to dist/bin and finds libtorch in ../backends/diffusion.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=tools/common.sh
. "$root/tools/common.sh"

venv="$root/.venv"
site="$(site_packages "$venv")"
target="$root/dist/backends/diffusion"
mkdir -p "$target" "$root/dist/bin"

# place FILE FOLDER: a hard link where the file system allows one (libtorch_cpu.so alone has 430 MB), else a copy.
place() {
  local from to
  from="$(readlink -f "$1")"
  to="$2/$(basename "$1")"
  if [ "$from" -ef "$to" ] || cmp -s "$from" "$to"; then return; fi
  rm -f "$to"
  ln "$from" "$to" 2>/dev/null || cp "$from" "$to"
}

for name in libtorch_cpu.so libc10.so libgomp.so.1 libcudart.so.13 libcupti.so.13; do
  place "$root/target/libtorch/lib/$name" "$target"
done

if [ -n "${CUDA:-}" ] && [ "$CUDA" != 0 ]; then
  requirements="$root/tools/requirements-cuda.txt"
  stamp="$venv/.setup-stamp-cuda"
  if [ "$(cat "$stamp" 2>/dev/null || true)" != "$(sha256sum <"$requirements")" ]; then
    echo "backend: installing libtorch's CUDA libraries into .venv (the first time about 2 GB are downloaded)"
    pip_install "$venv" "$requirements"
    sha256sum <"$requirements" >"$stamp"
  fi
  mkdir -p "$target/cuda"
  for library in "$site"/torch/lib/lib{c10_cuda,torch_cuda,torch_cuda_linalg,torch_nvshmem}.so \
    "$site"/nvidia/*/lib/lib*.so.[0-9]*; do
    place "$library" "$target/cuda"
  done
fi

# stripped NAME FOLDER: what we built goes without debug information (8 MB instead of 100) and is renamed into place: a build
# that comes later must not change the file under a server that has it mapped.
stripped() {
  local built="$root/target/release/$1" new="$2/.$1.new"
  [ -f "$built" ] || { echo "backend.sh: $built is missing; run 'make build'" >&2; exit 1; }
  strip --strip-debug -o "$new" "$built"
  if cmp -s "$new" "$2/$1"; then rm "$new"; else mv -f "$new" "$2/$1"; fi
}
stripped libtriton_diffusion.so "$target"
stripped triton-diffusion "$root/dist/bin"

echo "backend: $target"
echo "command: $root/dist/bin/triton-diffusion"
