// Whether orders that callers give can be followed.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "scan.h"

// Whether `order` holds each of 0, ..., length - 1 once. An entry outside would be an address outside a buffer, and a
// position that is left out would keep whatever the memory of the output held. `visited` is scratch of `length` bytes.
template <typename Integer>
bool is_permutation(const Integer* order, int64_t length, uint8_t* visited) {
  std::memset(visited, 0, length);
  for (int64_t i = 0; i < length; i++) {
    if ((uint64_t)order[i] >= (uint64_t)length || visited[order[i]]) return false;
    visited[order[i]] = 1;
  }
  return true;
}

// Whether the kernels can follow the order of a scan (ScanArgs, or what has the same fields).
template <typename Args>
ScanStatus order_status(const Args& a) {
  if (!a.path) {
    for (int64_t k = 0; k < a.directions; k++)
      if (a.order[k] < 0 || a.order[k] > 3) return kScanBadOrder;
    return kScanDone;
  }
  if (a.trusted) return kScanDone;
  const int64_t length = a.height * a.width;
  uint8_t* const visited = (uint8_t*)std::malloc(length);
  if (!visited) return kScanNoMemory;
  bool good = true;
  for (int64_t k = 0; k < a.directions && good; k++) good = is_permutation(a.path + k * length, length, visited);
  std::free(visited);
  return good ? kScanDone : kScanBadOrder;
}
