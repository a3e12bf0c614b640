// The C interface of the library, loaded with ctypes: what it is, the scan and window attention.
//
// Results do not depend on the number of threads: a task computes its own outputs, and what several tasks contribute to
// is either added by one task in a fixed order or handed back in parts for the caller to add in a fixed order.

#include "orders.h"
#include "parallel.h"

namespace {

const Kernels* choose() {
  const char* forced = std::getenv("QMAMBAIR_ISA");  // for tests: a narrower set than the CPU has
#if defined(QM_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && (!forced || !std::strcmp(forced, "avx512"))) return &kernels_avx512;
  if (avx2 && (!forced || std::strcmp(forced, "portable"))) return &kernels_avx2;
#endif
  (void)forced;
  return &kernels_portable;
}

const pid_t loaded_in = getpid();

// Runs task(i) for i below `count`; 0 when one of them says that memory ran out.
template <typename Task>
int64_t all_done(int64_t count, int64_t threads, const Task& task) {
  int64_t failed = 0;
  parallel(count, threads, [&](int64_t i) {
    if (!task(i)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  });
  return !failed;
}

// Whether the kernels can follow the index and the order of window attention.
int64_t attention_status(const AttentionArgs& a, bool backward) {
  const bool sized = a.batch > 0 && a.windows > 0 && a.heads > 0 && a.dim > 0 && a.dim <= kMaxAttentionDim &&
                     a.tokens > 0 && a.tokens <= kMaxAttentionTokens && a.tokens % 16 == 0 && a.entries > 0 &&
                     a.groups > 0 && a.image_stride >= 0 && a.token_stride >= 0;
  const bool given = a.qkv && a.table && a.index && a.order && a.out &&
                     (!backward || (a.norms && a.dout && a.dqkv && a.dtable && (!a.grid || a.dgrid)));
  if (!sized || !given) return kAttentionBadSize;
  bool inside = true;
  for (int64_t i = 0; i < a.tokens * a.tokens; i++) inside &= (uint64_t)a.index[i] < (uint64_t)a.entries;
  if (!inside) return kAttentionBadIndex;
  const int64_t length = a.windows * a.tokens;
  uint8_t* const visited = (uint8_t*)std::malloc(length);
  if (!visited) return kAttentionNoMemory;
  const bool good = is_permutation(a.order, length, visited);
  std::free(visited);
  return good ? kAttentionDone : kAttentionBadOrder;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels* const table = choose();
  return *table;
}

bool forked() { return getpid() != loaded_in; }

// Changes with every change of an argument list or struct.
QM_API int64_t qm_abi() { return 14; }

// Digest of the sources this library was built from, as ops/build.py computes it.
QM_API const char* qm_sources() { return QM_SOURCES; }

QM_API const char* qm_isa() { return kernels().name; }

QM_API int64_t qm_threaded() {
#if defined(_OPENMP)
  return 1;
#else
  return 0;
#endif
}

// Outputs and states of a scan; a ScanStatus.
QM_API int64_t qm_scan_forward(const ScanArgs* args) {
  const ScanArgs& a = *args;
  if (const int64_t status = order_status(a)) return status;
  const int64_t width = kernels().scan.width, blocks = (a.channels + width - 1) / width;
  const int64_t K = a.directions, outer = a.merge ? 1 : K;
  const int64_t groups = forward_groups(a.batch * outer, blocks, a.threads);
  parallel(a.batch * outer * groups, a.threads, [&](int64_t i) {
    const int64_t group = i % groups, k = i / groups % outer, image = i / groups / outer;
    const int64_t first = group * blocks / groups * width, last = (group + 1) * blocks / groups * width;
    for (int64_t d = a.merge ? 0 : k; d < (a.merge ? K : k + 1); d++) kernels().scan.forward(a, image, d, first, last);
  });
  return kScanDone;
}

// Gradients of a scan; a ScanStatus.
QM_API int64_t qm_scan_backward(const ScanArgs* args) {
  const ScanArgs& a = *args;
  if (const int64_t status = order_status(a)) return status;
  const int64_t K = a.directions, outer = a.merge ? 1 : K;
  const bool done = all_done(a.batch * outer * a.groups, a.threads, [&](int64_t i) {
    const int64_t group = i % a.groups, k = i / a.groups % outer, image = i / a.groups / outer;
    bool done = true;
    for (int64_t d = a.merge ? 0 : k; d < (a.merge ? K : k + 1); d++) done &= kernels().scan.backward(a, image, d, group);
    return done;
  });
  return done ? kScanDone : kScanNoMemory;
}

// Window attention; an AttentionStatus.
QM_API int64_t qm_attention_forward(const AttentionArgs* args) {
  const AttentionArgs& a = *args;
  if (const int64_t status = attention_status(a, false)) return status;
  const bool lined = is_lined(a);
  const bool done = all_done(a.groups * a.heads, a.threads,
                             [&](int64_t i) { return kernels().attention.forward(a, i / a.heads, i % a.heads, lined); });
  return done ? kAttentionDone : kAttentionNoMemory;
}

// Its gradients; an AttentionStatus.
QM_API int64_t qm_attention_backward(const AttentionArgs* args) {
  const AttentionArgs& a = *args;
  if (const int64_t status = attention_status(a, true)) return status;
  const bool done = all_done(a.groups * a.heads, a.threads,
                             [&](int64_t i) { return kernels().attention.backward(a, i / a.heads, i % a.heads); });
  return done ? kAttentionDone : kAttentionNoMemory;
}
