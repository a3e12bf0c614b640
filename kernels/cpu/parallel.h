// Choice of threads and instruction set, shared by the C interfaces of the scan (api.cpp) and the quantizers
// (quant_api.cpp).
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "crew.h"
#include "kernels.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

#define QM_API extern "C" __attribute__((visibility("default")))

// The kernels of this CPU, chosen on first use.
const Kernels& kernels();

// True in a process that was forked after the library was loaded (a DataLoader worker). An OpenMP pool does not survive
// fork(): a child that opens a parallel region may wait for threads it does not have, so it computes on one thread.
bool forked();

// Groups that the channel blocks are split into: as few as keep `threads` threads busy for all but a twentieth of the
// time, as blocks of one task share the rows they read.
inline int64_t forward_groups(int64_t sequences, int64_t blocks, int64_t threads) {
  int64_t best = 1, least = INT64_MAX;
  for (int64_t groups = 1; groups <= blocks; groups++) {
    const int64_t rounds = (sequences * groups + threads - 1) / threads, length = (blocks + groups - 1) / groups;
    if (rounds * length < least - least / 20) best = groups, least = rounds * length;
  }
  return best;
}

// task(0), ..., task(tasks - 1) on up to `threads` threads, in any order.
template <typename Task>
void parallel(int64_t tasks, int64_t threads, const Task& task) {
#if defined(_OPENMP)
  if (threads > 1 && tasks > 1 && own_crew())
    return own_crew()->share(tasks, [](const void* t, int64_t i) { (*(const Task*)t)(i); }, &task);
  if (threads > 1 && tasks > 1 && !forked()) {
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)(threads < tasks ? threads : tasks))
    for (int64_t i = 0; i < tasks; i++) task(i);
    return;
  }
#endif
  (void)threads;
  for (int64_t i = 0; i < tasks; i++) task(i);
}
