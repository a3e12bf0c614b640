// Calls the C interface with heap buffers of exactly the right size, so that the sanitizers see any access beyond them,
// over shapes with full and partial vectors, partial chunks, one token, and NaN, infinite and huge values.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <utility>
#include <vector>

#include "../attention.h"
#include "../parallel.h"
#include "../scan.h"
#include "../table_scan.h"

extern "C" {
const char* qm_isa();
int64_t qm_scan_forward(const ScanArgs*);
int64_t qm_scan_backward(const ScanArgs*);
int64_t qm_table_scan(const TableScanArgs*);
int64_t qm_scan_tables(const ScanTablesArgs*);
int64_t qm_attention_forward(const AttentionArgs*);
int64_t qm_attention_backward(const AttentionArgs*);
int64_t qm_any_equal(const float*, int64_t, double, double);
int64_t qm_lsq_forward(const LsqItem*, int64_t, int64_t);
int64_t qm_lsq_backward(const LsqItem*, int64_t, int64_t);
int64_t qm_dls_forward(const DlsItem*, int64_t, int64_t);
int64_t qm_dls_backward(const DlsItem*, int64_t, int64_t);
int64_t qm_rfa_forward(const RfaItem*, int64_t, int64_t);
int64_t qm_rfa_backward(const RfaItem*, int64_t, int64_t);
}

namespace {

typedef std::vector<float> Buffer;

uint32_t seed = 1;
float random_value() {
  seed = seed * 1664525u + 1013904223u;
  return (float)(seed >> 8) / (float)(1 << 23) - 1.f;
}

// `odd` puts values at the front that arithmetic has to survive.
Buffer random_buffer(int64_t n, float scale = 1.f, bool odd = false) {
  Buffer b(n);
  for (float& v : b) v = scale * random_value();
  const float inf = std::numeric_limits<float>::infinity();
  const float values[] = {std::nanf(""), inf, -inf, 3e38f, -3e38f, 1e-42f};
  if (odd)
    for (int64_t i = 0; i < 6 && i < n; i++) b[i] = values[i];
  return b;
}

// The ways to go through a map: named directions, a path from one dense map, a path with rows apart and a map per direction.
enum Way { kNamed, kListed, kListedApart };

void scan(int64_t batch, int64_t height, int64_t width, int64_t K, int64_t D, int64_t N, bool merge, bool odd, Way way) {
  const int64_t pixels = batch * height * width, length = height * width, order[4] = {0, 1, 2, 3};
  const int64_t gap = way == kListedApart ? 1 : 0, per_pixel = gap ? K * D : D;  // of x and dy; pixels between their rows
  ScanArgs a = {};
  a.batch = batch, a.height = height, a.width = width, a.directions = K, a.channels = D, a.state = N;
  a.chunk = 64, a.groups = D / 64 > 1 ? D / 64 : 1, a.softplus = 1, a.save_states = 1, a.merge = merge, a.threads = 1;
  a.order = order;
  std::vector<int32_t> path(K * length);
  for (int64_t k = 0; k < K; k++) {
    for (int64_t t = 0; t < length; t++) path[k * length + t] = (int32_t)t;
    for (int64_t t = length - 1; t > 0; t--)
      std::swap(path[k * length + t], path[k * length + (int64_t)((random_value() + 1) / 2 * t)]);
  }
  if (way != kNamed) a.path = path.data(), a.order = nullptr;
  const int64_t chunks = (length + a.chunk - 1) / a.chunk, map = pixels * D * (merge ? 1 : K);
  const int64_t image = (height * (width + gap) - gap) * per_pixel;
  const Buffer x = random_buffer(batch * image, 1, odd), delta = random_buffer(pixels * K * D, 4, odd);
  const Buffer B = random_buffer(pixels * K * N, 1, odd), C = random_buffer(pixels * K * N), dy = random_buffer(batch * image);
  Buffer A = random_buffer(K * N * D, 1e4f), skip = random_buffer(K * D), bias = random_buffer(K * D);
  for (float& v : A) v = -std::fabs(v);
  Buffer y(map), dx(map), states(batch * K * chunks * N * D), ddelta(pixels * K * D), dB(a.groups * pixels * K * N);
  Buffer dC(dB.size()), dA(batch * K * N * D), dD(batch * K * D), dbias(batch * K * D);
  const int64_t given[4] = {image, (width + gap) * per_pixel, per_pixel, gap ? D : 0};
  const int64_t all[4] = {height * width * K * D, width * K * D, K * D, D};
  const int64_t maps[4] = {height * width * K * N, width * K * N, K * N, N};
  for (int i = 0; i < 4; i++) {
    a.x_stride[i] = a.dy_stride[i] = given[i];
    a.delta_stride[i] = all[i];
    a.B_stride[i] = a.C_stride[i] = maps[i];
  }
  a.x = x.data(), a.delta = delta.data(), a.B = B.data(), a.C = C.data(), a.dy = dy.data(), a.A = A.data();
  a.D = skip.data(), a.bias = bias.data(), a.y = y.data(), a.dx = dx.data(), a.states = states.data();
  a.ddelta = ddelta.data(), a.dB = dB.data(), a.dC = dC.data(), a.dA = dA.data(), a.dD = dD.data(), a.dbias = dbias.data();
  Buffer last(batch * K * N * D);
  const float none = std::nanf("");
  const Buffer plain = {0.1f, 0.03f, -8, 7, -0.8f, 0.7f}, wild = {1e-15f, 3e38f, -128, 127, none, none};
  std::vector<double> dgrid(a.groups * batch * K * 4);
  a.dgrid = dgrid.data();
  for (const float* grid : {(const float*)nullptr, odd ? wild.data() : plain.data()}) {
    a.grid = grid, a.save_states = 1, a.states = states.data();
    if (qm_scan_forward(&a) != kScanDone || qm_scan_backward(&a) != kScanDone) std::abort();
    a.save_states = 0, a.states = last.data();
    if (qm_scan_forward(&a) != kScanDone) std::abort();
  }
}

// Orders that would lead the kernels astray are refused before anything is read: the maps are null.
void hostile_orders() {
  const int64_t good[2] = {0, 3};
  ScanArgs a = {};
  a.batch = 1, a.height = 2, a.width = 3, a.directions = 2, a.channels = 1, a.state = 1, a.chunk = 64, a.groups = 1;
  a.threads = 1, a.order = good;
  for (const int32_t wrong : {-1, 6, 4, INT32_MIN, INT32_MAX}) {
    const std::vector<int32_t> path = {0, 1, 2, 3, 4, 5, 5, 4, 3, 2, 1, wrong};
    a.path = path.data();
    if (qm_scan_forward(&a) != kScanBadOrder || qm_scan_backward(&a) != kScanBadOrder) std::abort();
  }
  a.path = nullptr;
  for (const int64_t wrong : {-1, 4}) {
    const int64_t order[2] = {0, wrong};
    a.order = order;
    if (qm_scan_forward(&a) != kScanBadOrder || qm_scan_backward(&a) != kScanBadOrder) std::abort();
  }
}

// The scan on codes; `kind` of every operand, delta on its grid in any case. Codes are any bytes.
void table_scan(int64_t batch, int64_t height, int64_t width, int64_t K, int64_t D, int64_t N, int64_t bits,
                OperandKind kind, bool merge, bool odd, Way way) {
  const int64_t pixels = batch * height * width, length = height * width, order[4] = {0, 1, 2, 3};
  const int64_t values_of = (int64_t)1 << bits, levels = table_levels(bits), groups = way == kNamed ? 1 : batch, row = table_row(N);
  Buffer grid;
  for (int64_t b = 0; b < groups; b++)
    for (const float v : {0.3f, odd ? -0.1f : 0.f, (float)(-values_of / 2), (float)(values_of / 2 - 1)}) grid.push_back(v);
  if (odd) grid[0] = 1e-12f;
  std::vector<int32_t> path(K * length);
  for (int64_t i = 0; i < K * length; i++) path[i] = (int32_t)(length - 1 - i % length);
  Buffer A = random_buffer(K * D * N, 1e4f), skip = random_buffer(K * D), bias = random_buffer(K * D);
  for (float& v : A) v = -std::fabs(v);
  Buffer decays(groups * K * D * levels * row), steps(groups * K * D * levels), y(pixels * D * (merge ? (odd || K == 1 ? 1 : 2) : K));
  ScanTablesArgs t = {groups, K, D, N, row, bits, 1, 1, grid.data(), A.data(), bias.data(), decays.data(), steps.data()};
  if (qm_scan_tables(&t) != kTableScanDone) std::abort();
  TableScanArgs a = {};
  a.batch = batch, a.height = height, a.width = width, a.directions = K, a.channels = D, a.state = N, a.row = row;
  a.parts = merge && !odd && K > 1 ? 2 : 1;
  a.merge = merge, a.threads = way == kNamed ? 2 : 1, a.order = order;  // two: channels are dealt out in fours
  if (way != kNamed) a.path = path.data(), a.order = nullptr;
  std::vector<Buffer> values;
  std::vector<std::vector<uint8_t>> codes;
  const auto fill = [&](Operand& o, OperandKind stored, int64_t last, bool shared) {
    const int64_t per_pixel = shared ? last : K * last;
    o = {nullptr, stored, grid.data(), groups == 1 ? 0 : 4, bits, {length * per_pixel, width * per_pixel, per_pixel, shared ? 0 : last}};
    values.push_back(random_buffer(pixels * per_pixel, 2, odd));
    codes.emplace_back(pixels * per_pixel);
    for (uint8_t& c : codes.back()) c = (uint8_t)(int)(128 + 127 * random_value());
    o.data = stored == kCodes ? (const void*)codes.back().data() : (const void*)values.back().data();
  };
  values.reserve(4), codes.reserve(4);
  fill(a.x, kind, D, way != kListedApart), fill(a.delta, kind == kValues ? kCodes : kind, D, false);
  fill(a.B, kind, N, false), fill(a.C, kind, N, false);
  a.decays = decays.data(), a.steps = steps.data(), a.D = odd ? nullptr : skip.data(), a.y = y.data();
  a.decays_stride = groups == 1 ? 0 : K * D * levels * row, a.steps_stride = groups == 1 ? 0 : K * D * levels;
  if (qm_table_scan(&a) != kTableScanDone) std::abort();

  // what does not fit is refused
  const auto refused = [&](int64_t* place, int64_t value) {
    const int64_t kept = *place;
    *place = value;
    if (qm_table_scan(&a) != kTableScanBadSize) std::abort();
    *place = kept;
  };
  for (int64_t* size : {&a.batch, &a.height, &a.width, &a.directions, &a.channels, &a.state, &a.row, &a.parts})
    for (const int64_t value : {(int64_t)0, (int64_t)-1, INT64_MIN}) refused(size, value);
  for (Operand* o : {&a.x, &a.delta, &a.B, &a.C}) refused(&o->kind, 3), refused(&o->kind, -1);
  for (const int64_t wrong : {(int64_t)0, (int64_t)9, INT64_MIN}) refused(&a.delta.bits, wrong);
  refused(&a.parts, merge ? K + 1 : 2);
  refused(&a.state, 257), refused(&a.row, row + 1), refused(&a.delta.kind, kValues);
  path[0] = (int32_t)length;
  if (way != kNamed && qm_table_scan(&a) != kTableScanBadOrder) std::abort();
  for (int64_t* size : {&t.groups, &t.directions, &t.channels, &t.state, &t.row, &t.bits}) {
    const int64_t kept = *size;
    *size = 0;
    if (qm_scan_tables(&t) != kTableScanBadSize) std::abort();
    *size = kept;
  }
}

// Whether both passes refuse the item.
template <typename Item, typename Pass>
void refused(const Item& item, Pass forward, Pass backward) {
  if (!forward(&item, 1, 1) || !backward(&item, 1, 1)) std::abort();
}

void quantizers(int64_t rows, int64_t cols, bool odd) {
  const int64_t n = rows * cols;
  const Buffer x = random_buffer(n, 3, odd), grad = random_buffer(n), step(rows, 0.3f), offset(rows, 0.1f);
  Buffer y(n), dx(n), d_step(rows), d_offset(rows), stats(4 * rows), grid(4 * rows), dw(4), dv(4);
  const LsqItem lsq = {x.data(), grad.data(), y.data(), dx.data(), step.data(), offset.data(), d_step.data(),
                       d_offset.data(), rows, cols, rows, 0.1, 0.5, -8, 7};
  LsqItem plain = lsq;
  plain.offset = nullptr, plain.d_offset = nullptr, plain.params = 1, plain.floor = -1;
  const LsqItem both[] = {lsq, plain};
  if (qm_any_equal(x.data(), n, x[n - 1], 1e30) != (x[n - 1] == x[n - 1])) std::abort();
  if (qm_lsq_forward(both, 2, 1) || qm_lsq_backward(both, 2, 1)) std::abort();
  const Buffer w = {.1f, .4f, 0, 0}, v = {-1, 0, 0, 0};
  const DlsItem dls = {x.data(), grad.data(), y.data(), dx.data(), w.data(), v.data(), stats.data(), grid.data(), dw.data(),
                       dv.data(), rows, cols, 1. / 16, 1, -8, 7};
  if (qm_dls_forward(&dls, 1, 1) || qm_dls_backward(&dls, 1, 1)) std::abort();
  RfaItem rfa = {x.data(), grad.data(), y.data(), dx.data(), step.data(), offset.data(), nullptr, d_step.data(),
                 d_offset.data(), nullptr, n, 0, 1e-8, 1, -1, 0, 0};
  for (int64_t levels : {2, 16, 256})
    for (double gap : {-1., 0.1}) {
      Buffer thresholds(levels), d(levels);
      for (int64_t i = 0; i < levels; i++) thresholds[i] = (float)(i - levels / 2) + 2.6f * random_value();
      rfa.thresholds = thresholds.data(), rfa.d_thresholds = d.data(), rfa.levels = levels, rfa.min_gap = gap;
      rfa.qmin = -(float)(levels / 2);
      if (qm_rfa_forward(&rfa, 1, 1) || qm_rfa_backward(&rfa, 1, 1)) std::abort();
    }
  // sizes that no tensor has, and levels that the tables cannot hold
  Buffer two(2);
  rfa.thresholds = rfa.d_thresholds = two.data();
  for (int64_t levels : {INT64_MIN, (int64_t)-1, (int64_t)0, (int64_t)1, (int64_t)257, (int64_t)1 << 40}) {
    rfa.levels = levels;
    refused(rfa, qm_rfa_forward, qm_rfa_backward);
  }
  for (int64_t params : {INT64_MIN, (int64_t)-1, (int64_t)0, (int64_t)2}) {
    LsqItem wrong = lsq;
    wrong.params = params;
    refused(wrong, qm_lsq_forward, qm_lsq_backward);
  }
  for (int64_t bad : {INT64_MIN, (int64_t)-1, (int64_t)0}) {
    LsqItem narrow = lsq, flat = lsq;
    DlsItem empty = dls;
    narrow.rows = flat.cols = empty.cols = rfa.n = bad, rfa.levels = 2;
    refused(narrow, qm_lsq_forward, qm_lsq_backward);
    refused(flat, qm_lsq_forward, qm_lsq_backward);
    refused(empty, qm_dls_forward, qm_dls_backward);
    refused(rfa, qm_rfa_forward, qm_rfa_backward);
    if (!qm_lsq_forward(&lsq, bad, 1)) std::abort();
  }
  LsqItem wrong = lsq;
  wrong.qmin = 7, wrong.qmax = -8;
  refused(wrong, qm_lsq_forward, qm_lsq_backward);
  wrong.qmin = std::nanf(""), wrong.qmax = 7;
  refused(wrong, qm_lsq_forward, qm_lsq_backward);
}

void attention(int64_t batch, int64_t windows, int64_t tokens, int64_t heads, int64_t dim, bool masked, bool odd, bool lined) {
  AttentionArgs a = {};
  a.batch = batch, a.windows = windows, a.tokens = tokens, a.heads = heads, a.dim = dim;
  a.entries = lined ? 18 : 9, a.groups = 2, a.threads = 1, a.scale = 0.3f, a.masked = -100;
  const int64_t length = windows * tokens, width = heads * dim;
  a.image_stride = length * 3 * width, a.token_stride = 3 * width;
  const Buffer qkv = random_buffer(batch * length * 3 * width, 2, odd), table = random_buffer(a.entries * heads);
  const Buffer dout = random_buffer(batch * length * width);
  std::vector<int64_t> index(tokens * tokens), order(length);
  std::vector<int32_t> regions(length);
  for (int64_t i = 0; i < tokens * tokens; i++) index[i] = lined ? i / tokens % 16 + i % 3 : i * 7 % a.entries;
  for (int64_t i = 0; i < length; i++) order[i] = length - 1 - i, regions[i] = (int32_t)(i % 3);
  Buffer out(dout.size()), norms(batch * windows * heads * 2 * tokens), dqkv(qkv.size());
  Buffer dtable(a.groups * heads * a.entries);
  a.qkv = qkv.data(), a.table = table.data(), a.index = index.data(), a.order = order.data();
  a.regions = masked ? regions.data() : nullptr;
  a.out = out.data(), a.norms = norms.data(), a.dout = dout.data(), a.dqkv = dqkv.data(), a.dtable = dtable.data();
  const float none = std::nanf("");
  const Buffer plain = {0.1f, 0.03f, -8, 7, 0, 0.7f}, wild_grid = {1e-15f, 3e38f, -128, 127, none, none};
  std::vector<double> dgrid(a.groups * heads * 4);
  a.dgrid = dgrid.data();
  for (const float* grid : {odd ? wild_grid.data() : plain.data(), (const float*)nullptr}) {
    a.grid = grid;
    if (qm_attention_forward(&a) || qm_attention_backward(&a)) std::abort();
    a.norms = nullptr;
    if (qm_attention_forward(&a)) std::abort();
    a.norms = norms.data();
  }

  // what a file or a caller may get wrong: refused by both passes, before anything is read or written through it
  const int64_t wild[] = {-1, -3, 5000, 1000000000000, INT64_MIN, INT64_MAX};
  const auto refused = [&](int64_t status) {
    std::fill(out.begin(), out.end(), 7.f), std::fill(dqkv.begin(), dqkv.end(), 7.f);
    std::fill(dtable.begin(), dtable.end(), 7.f);
    if (qm_attention_forward(&a) != status || qm_attention_backward(&a) != status) std::abort();
    for (const Buffer* b : {&out, &dqkv, &dtable})
      for (float v : *b)
        if (v != 7.f) std::abort();
  };
  const auto with = [&](int64_t* place, int64_t value, int64_t status) {
    const int64_t kept = *place;
    *place = value;
    refused(status);
    *place = kept;
  };
  for (const int64_t value : wild) {
    with(&index[(uint64_t)(seed * 7) % index.size()], value, kAttentionBadIndex);
    with(&order[(uint64_t)(seed * 5) % order.size()], value, kAttentionBadOrder);
    random_value();
  }
  with(&index[0], a.entries, kAttentionBadIndex);
  with(&order[0], length, kAttentionBadOrder);
  with(&order[0], order[1], kAttentionBadOrder);  // twice, and another position not at all
  for (int64_t* size : {&a.batch, &a.windows, &a.tokens, &a.heads, &a.dim, &a.entries, &a.groups})
    for (const int64_t value : {(int64_t)0, (int64_t)-1, INT64_MIN}) with(size, value, kAttentionBadSize);
  for (const int64_t value : {17, 1040}) with(&a.tokens, value, kAttentionBadSize);
  with(&a.dim, 129, kAttentionBadSize);
  a.index = nullptr;
  refused(kAttentionBadSize);
}

}  // namespace

// Any argument: fewer sizes of scans, for emulators.
int main(int argc, char**) {
  const bool few = argc > 1;
  hostile_orders();
  for (const bool odd : {false, true}) {
    for (const int64_t state : {1, 5, 8, 10, 16}) {
      for (const int64_t channels : {1, 7, 16, 33, 130}) {
        if (few && (state != 10 || channels != 33)) continue;
        for (const bool merge : {true, false}) {
          for (const Way way : {kNamed, kListed, kListedApart}) {
            scan(1, 1, 1, 4, channels, state, merge, odd, way);
            scan(2, 5, 13, 4, channels, state, merge, odd, way);
          }
        }
      }
    }
    for (const int64_t state : {1, 4, 7, 10, 16, 40}) {
      if (few && state != 7 && state != 16) continue;
      for (const int64_t bits : {1, 4, 8}) {
        for (const OperandKind kind : {kValues, kCodes, kOnEntering}) {
          const Way way = bits == 1 ? kNamed : bits == 4 ? kListed : kListedApart;
          table_scan(1, 1, 1, 2, 5, state, bits, kind, true, odd, way);
          table_scan(2, 5, 17, 4, bits == 4 ? 45 : 21, state, bits, kind, state % 2 == 0, odd, way);
        }
      }
    }
    table_scan(1, 9, 9, 1, 3, 256, 2, kCodes, true, odd, kNamed);
    scan(1, 10, 20, 1, 3, 256, true, odd, odd ? kNamed : kListed);
    for (const int64_t dim : {1, 12, 128})
      for (const bool lined : {false, true})
        attention(1, 3, 16, 2, dim, odd, odd, lined), attention(2, 1, 32, 1, dim, !odd, odd, lined);
    for (const int64_t cols : {1, 15, 63, 500, 20000}) quantizers(3, cols, odd);
  }
  std::printf("%s: clean\n", qm_isa());
}
