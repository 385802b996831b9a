#!/usr/bin/env bash
# Compiles tests/check_cuda/helper.cpp to target/check_cuda/libcheck_cuda.so, which the tests of `make check-cuda` open.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source="$root/tests/check_cuda"
libtorch="$root/target/libtorch"
out="$root/target/check_cuda"
library="$out/libcheck_cuda.so"

stamp="$(cat "$source"/helper.* "$0" | sha256sum)"
if [ -f "$library" ] && [ "$(cat "$out/stamp" 2>/dev/null || true)" = "$stamp" ]; then
  exit 0
fi
echo "check-cuda: compiling $library"
mkdir -p "$out"
"${CXX:-g++}" -std=c++17 -O1 -fPIC -w -D_GLIBCXX_USE_CXX11_ABI=1 -I"$libtorch/include" -shared "$source/helper.cpp" \
  -o "$library.new" -L"$libtorch/lib" -l:libtorch_cpu.so -l:libc10.so -Wl,--allow-shlib-undefined
mv "$library.new" "$library"
printf '%s\n' "$stamp" >"$out/stamp"
