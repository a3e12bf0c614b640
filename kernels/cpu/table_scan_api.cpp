// C interface of the scan on codes; each function returns a TableScanStatus.

#include "orders.h"
#include "parallel.h"

namespace {

bool sized(const Operand& o) {
  if (!o.data || o.kind < kValues || o.kind > kOnEntering) return false;
  return o.kind == kValues || (o.grid && o.bits >= 1 && o.bits <= 8 && (o.grid_stride == 0 || o.grid_stride == 4));
}

bool sized(const TableScanArgs& a) {
  if (a.batch < 1 || a.height < 1 || a.width < 1 || a.directions < 1 || a.channels < 1) return false;
  if (a.state < 1 || a.row != table_row(a.state) || a.row > 256 || a.delta.kind == kValues) return false;
  if (a.parts < 1 || a.parts > a.directions || (!a.merge && a.parts > 1)) return false;
  return sized(a.x) && sized(a.delta) && sized(a.B) && sized(a.C) && a.decays && a.steps && a.y;
}

}  // namespace

QM_API int64_t qm_table_scan(const TableScanArgs* args) {
  const TableScanArgs& a = *args;
  if (!sized(a) || (!a.path && !a.order)) return kTableScanBadSize;
  if (const ScanStatus status = order_status(a)) return status == kScanNoMemory ? kTableScanNoMemory : kTableScanBadOrder;
  const TableScanKernels& table = kernels().table_scan;
  const int64_t units = (a.channels + kScanUnit - 1) / kScanUnit, K = a.directions, outer = a.merge ? a.parts : K;
  const int64_t groups = forward_groups(a.batch * outer, units, a.threads);
  int64_t failed = 0;
  parallel(a.batch * outer * groups, a.threads, [&](int64_t i) {
    const int64_t group = i % groups, k = i / groups % outer, image = i / groups / outer;
    const int64_t first = group * units / groups * kScanUnit, end = (group + 1) * units / groups * kScanUnit;
    const int64_t last = end < a.channels ? end : a.channels;
    for (int64_t d = a.merge ? part_begin(a, k) : k; d < (a.merge ? part_begin(a, k + 1) : k + 1); d++)
      if (!table.scan(a, image, d, first, last)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
  });
  return failed ? kTableScanNoMemory : kTableScanDone;
}

QM_API int64_t qm_scan_tables(const ScanTablesArgs* args) {
  const ScanTablesArgs& a = *args;
  const bool good = a.groups > 0 && a.directions > 0 && a.channels > 0 && a.state > 0 && a.row == table_row(a.state) &&
                    a.row <= 256 && a.bits >= 1 && a.bits <= 8 && a.grid && a.A && a.decays && a.steps;
  if (!good) return kTableScanBadSize;
  const int64_t rows = a.groups * a.directions;
  parallel(rows, a.threads, [&](int64_t i) {
    for (int64_t channel = 0; channel < a.channels; channel++)
      kernels().table_scan.tables(a, i / a.directions, i % a.directions, channel);
  });
  return kTableScanDone;
}
