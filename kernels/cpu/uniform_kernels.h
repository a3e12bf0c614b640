// The uniform numbers of torch's generator on a CPU, bit by bit, whole vectors at a time: torch makes them one by one.
#pragma once

#include "glue.h"
#include "simd.h"

namespace QM_ISA {
namespace {

typedef uint32_t vu __attribute__((vector_size(4 * QM_WIDTH)));
constexpr int kMersenneWords = 624, kMersenneApart = 397;

QM_INLINE vu load_words(const uint32_t* p) {
  vu v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Words [begin, end) of the next state: each from its old value, the next word and the one kMersenneApart further, which is
// `far` words away. Whole vectors touch words of which none depends on another.
QM_INLINE void next_words(uint32_t* word, int begin, int end, int far) {
  const auto step = [](auto own, auto next, auto further) {
    const auto mixed = (own & 0x80000000u) | (next & 0x7fffffffu);
    return further ^ (mixed >> 1) ^ ((0u - (next & 1u)) & 0x9908b0dfu);
  };
  int i = begin;
  for (; i + W <= end; i += W) {
    const vu made = step(load_words(word + i), load_words(word + i + 1), load_words(word + i + far));
    std::memcpy(word + i, &made, sizeof made);
  }
  for (; i < end; i++) word[i] = step(word[i], word[i + 1], word[i + far]);
}

void next_state(uint32_t* word) {
  const int split = kMersenneWords - kMersenneApart;
  next_words(word, 0, split, kMersenneApart);
  word[kMersenneWords] = word[0];  // the last word's next one
  next_words(word, split, kMersenneWords, -split);
}

// n numbers in [0, 1): the low 24 bits of a word, mixed.
QM_INLINE vf uniform_of(vu y) {
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  y ^= y >> 18;
  return __builtin_convertvector((vi)(y & 0xffffffu), vf) * 5.9604644775390625e-8f;
}

void uniform(TorchMersenne& state, float* out, int64_t n) {
  alignas(64) uint32_t word[kMersenneWords + 1 + W] = {};
  for (int i = 0; i < kMersenneWords; i++) word[i] = (uint32_t)state.words[i];
  int64_t left = state.left, next = (int64_t)state.next;
  while (n > 0) {
    if (left == 1) next_state(word), left = kMersenneWords + 1, next = 0;
    const int64_t here = n < left - 1 ? n : left - 1;
    for (int64_t i = 0; i < here; i += W) {
      const vf u = uniform_of(load_words(word + next + i));
      if (i + W <= here)
        store(out + i, u);
      else
        store(out + i, u, (int)(here - i));
    }
    out += here, n -= here, left -= here, next += here;
  }
  for (int i = 0; i < kMersenneWords; i++) state.words[i] = word[i];
  state.left = (int32_t)left, state.next = (uint64_t)next;
}

}  // namespace
}  // namespace QM_ISA
