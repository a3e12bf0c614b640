#!/usr/bin/env bash
# Runs every kernel under AddressSanitizer and UndefinedBehaviorSanitizer, for each instruction set of this CPU.
# usage: kernels/cpu/sanitize.sh [folder for the build]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(mktemp -d)}
cxx=${CXX:-g++}
flags=(-std=c++17 -O0 -g1 -ffp-contract=fast -fsanitize=address,undefined
       -fno-sanitize-recover=all -Wno-psabi '-DQM_SOURCES="sanitize"')
units=(api quant_api table_scan_api kernels_portable sanitize_driver)
if [[ $(uname -m) == x86_64 ]]; then
  flags+=(-DQM_X86)
  units+=(kernels_avx2 kernels_avx512 kernels_avx512vl)
fi
pids=()
for unit in "${units[@]}"; do
  extra=()
  [[ $unit == kernels_avx2 ]] && extra=(-mavx2 -mfma)
  [[ $unit == kernels_avx512* ]] && extra=(-mavx512f -mavx512dq -mavx512vl -mfma)
  source=$here/$unit.cpp
  [[ $unit == sanitize_driver ]] && source=$here/sanitize/driver.cpp
  "$cxx" "${flags[@]}" "${extra[@]}" -I"$here" -c "$source" -o "$out/$unit" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
"$cxx" "${flags[@]}" "${units[@]/#/$out/}" -o "$out/driver"
for isa in avx512 avx2 portable; do QMAMBAIR_ISA=$isa "$out/driver"; done
