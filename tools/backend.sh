#!/usr/bin/env bash
# Copies the built library and the libraries that it links to dist/backends/diffusion, which tritonserver can use as it is.
# No LD_LIBRARY_PATH is needed: the library's rpath is $ORIGIN. CUDA=1 adds libtorch's CUDA libraries in cuda/, where a GPU
# instance searches for them. The command goes to dist/bin and finds libtorch in ../backends/diffusion.
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

# is_unused NAME: whether no library in cuda/ links or opens this library of the packages (225 MB together). libcudart and
# libcupti are in the folder above, because libtorch_cpu.so links them too. `make check-cuda` opens all that remain.
is_unused() {
  case "$1" in
    libcudart.so.* | libcupti.so.*) ;;
    libcufftw.so.* | libcusolverMg.so.* | libnvblas.so.*) ;;
    libnvrtc.alt.so.* | libnvrtc-builtins.alt.so.*) ;;
    # Opened only for transfers between a GPU and storage over a network.
    libcufile_rdma.so.*) ;;
    *) return 1 ;;
  esac
}

if [ -n "${CUDA:-}" ] && [ "$CUDA" != 0 ]; then
  requirements="$root/tools/requirements-cuda.txt"
  stamp="$venv/.setup-stamp-cuda"
  if [ "$(cat "$stamp" 2>/dev/null || true)" != "$(sha256sum <"$requirements")" ]; then
    echo "backend: installing libtorch's CUDA libraries into .venv (the first time about 2 GB are downloaded)"
    pip_install "$venv" "$requirements"
    sha256sum <"$requirements" >"$stamp"
  fi
  mkdir -p "$target/cuda"
  declare -A shipped=()
  for library in "$site"/torch/lib/lib{c10_cuda,torch_cuda,torch_cuda_linalg,torch_nvshmem}.so \
    "$site"/nvidia/*/lib/lib*.so.[0-9]*; do
    name="$(basename "$library")"
    if is_unused "$name"; then continue; fi
    place "$library" "$target/cuda"
    shipped[$name]=1
  done
  # What an earlier run has left.
  for library in "$target"/cuda/*; do
    if [ -z "${shipped[$(basename "$library")]:-}" ]; then rm "$library"; fi
  done
fi

# stripped NAME FOLDER: copies a built file without debug information (8 MB instead of 100). The copy is renamed into place,
# because a later build must not change a file that a running server has mapped.
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
