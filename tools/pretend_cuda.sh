#!/usr/bin/env bash
# Compiles tests/gpu/pretend to target/pretend/libtorch_cuda.so: a device without a GPU, on which the tests run the GPU
# path. It is opened in place of libtorch's library with TRITON_DIFFUSION_CUDA_PATH=target/pretend.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source="$root/tests/gpu/pretend"
libtorch="$root/target/libtorch"
out="$root/target/pretend"
library="$out/libtorch_cuda.so"

stamp="$(cat "$source"/*.cpp "$source"/*.h "$0" | sha256sum)"
if [ -f "$library" ] && [ "$(cat "$out/stamp" 2>/dev/null || true)" = "$stamp" ]; then
  exit 0
fi
echo "pretend: compiling $library"
mkdir -p "$out"
pids=()
for file in control memory device operators; do
  "${CXX:-g++}" -std=c++17 -O1 -fPIC -w -D_GLIBCXX_USE_CXX11_ABI=1 -I"$libtorch/include" \
    -I"$libtorch/include/torch/csrc/api/include" -c "$source/$file.cpp" -o "$out/$file.o" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
"${CXX:-g++}" -shared -o "$library.new" "$out"/{control,memory,device,operators}.o -L"$libtorch/lib" -l:libtorch_cpu.so \
  -l:libc10.so -Wl,--allow-shlib-undefined
mv "$library.new" "$library"
printf '%s\n' "$stamp" >"$out/stamp"
