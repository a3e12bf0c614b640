#!/usr/bin/env bash
# Runs every kernel under AddressSanitizer and UndefinedBehaviorSanitizer, for each instruction set of this CPU.
# usage: kernels/cpu/sanitize.sh [folder for the build]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(mktemp -d)}
cxx=${CXX:-g++}
flags=(-std=c++17 -O0 -g1 -ffp-contract=fast -fsanitize=address,undefined
       -fno-sanitize-recover=all -Wno-psabi '-DQM_SOURCES="sanitize"')
units=(api program_api quant_api table_scan_api glue_api kernels_portable integer_api integer_portable sanitize_driver
       sanitize_glue_driver sanitize_integer_driver)
if [[ $(uname -m) == x86_64 ]]; then
  flags+=(-DQM_X86)
  units+=(kernels_avx2 kernels_avx512 kernels_avx512vl integer_avx2 integer_avx512)
  if "$cxx" -mavxvnni -fsyntax-only -x c++ /dev/null 2>/dev/null; then  # not in GCC before 11
    flags+=(-DQM_AVXVNNI)
    units+=(integer_avxvnni)
  fi
elif [[ $(uname -m) == aarch64 ]]; then
  units+=(integer_dotprod)
fi
pids=()
for unit in "${units[@]}"; do
  extra=()
  [[ $unit == kernels_avx2 ]] && extra=(-mavx2 -mfma)
  [[ $unit == kernels_avx512* ]] && extra=(-mavx512f -mavx512dq -mavx512vl -mfma)
  [[ $unit == integer_avx2 ]] && extra=(-mavx2 -mfma)
  [[ $unit == integer_avxvnni ]] && extra=(-mavx2 -mfma -mavxvnni)
  [[ $unit == integer_avx512 ]] && extra=(-mavx512f -mavx512dq -mavx512vl -mavx512bw -mavx512vnni -mfma)
  [[ $unit == integer_dotprod ]] && extra=(-march=armv8.2-a+dotprod)
  source=$here/$unit.cpp
  [[ $unit == sanitize_* ]] && source=$here/sanitize/${unit#sanitize_}.cpp
  "$cxx" "${flags[@]}" "${extra[@]}" -I"$here" -c "$source" -o "$out/$unit" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
for driver in driver glue_driver integer_driver; do
  objects=("$out/sanitize_$driver")
  for unit in "${units[@]}"; do
    [[ $unit == sanitize_* ]] || objects+=("$out/$unit")
  done
  "$cxx" "${flags[@]}" "${objects[@]}" -o "$out/$driver"
done
for isa in avx512 avx2 portable; do QMAMBAIR_ISA=$isa "$out/driver"; QMAMBAIR_ISA=$isa "$out/glue_driver"; done
for isa in avx512 avxvnni avx2 portable; do QMAMBAIR_ISA=$isa "$out/integer_driver"; done
