// One row of a sampler's table, and what executing it does to one element.
//
// No sampler is known here: a row is coefficients. The layout mirrors kernels/ulam_kernels/table.py.
#pragma once

#include <cstdint>

#include "ulam/exp.h"
#include "ulam/platform.h"

namespace ulam {

constexpr int kMaxRegisters = 5;

enum Column : int { kKx, kKm, kLow, kHigh, kLearnedSlope, kLearnedOffset, kNextScale, kUpdate };

enum Flag : uint32_t {
  kWrites = 0x1fu,  // bit i: register i is written; no bit at all: the row is idle
  kReadsModel = 1u << 5,
  kReadsNoise = 1u << 6,
  kUsesX0 = 1u << 7,
  kLearned = 1u << 8,
};

ULAM_HD constexpr int row_width(int registers) { return kUpdate + registers * (registers + 3); }

// A row with the masks of its present terms: a coefficient that is exactly 0 means that the term is not read.
// In terms[i], bit j < R is register j; bits R, R + 1 and R + 2 are the x0 estimate, the model output and the
// noise.
template <int R>
struct Row {
  const float* c;
  uint32_t flags;
  uint32_t terms[R];
  uint32_t reads;  // bit j: the old register j is needed

  ULAM_HD Row(const float* coefficients, uint32_t row_flags) : c(coefficients), flags(row_flags), reads(0) {
    ULAM_UNROLL
    for (int i = 0; i < R; ++i) {
      terms[i] = 0;
      if (!(flags >> i & 1)) continue;
      ULAM_UNROLL
      for (int j = 0; j < R + 3; ++j) terms[i] |= static_cast<uint32_t>(a(i, j) != 0.0f) << j;
      reads |= terms[i] & ((1u << R) - 1);
    }
    if ((flags & kUsesX0) && c[kKx] != 0.0f) reads |= 1u;
  }
  ULAM_HD float a(int i, int j) const { return c[kUpdate + i * (R + 3) + j]; }
};

// m_uncond + w (m_cond - m_uncond). Callers take w = 1 and w = 0 apart: they return their side untouched.
template <class V>
ULAM_HD typename V::f guide(typename V::f cond, typename V::f uncond, float w) {
  return V::fma(V::set(w), V::sub(cond, uncond), uncond);
}

// The x0 estimate. fma(a, b, -0) is mul(a, b), sign of zero included, so absent terms need no special first
// case.
template <class V, int R>
ULAM_HD typename V::f estimate_x0(const Row<R>& row, typename V::f x, typename V::f m) {
  typename V::f d = V::set(row.c[kKx] != 0.0f || row.c[kKm] != 0.0f ? -0.0f : 0.0f);
  if (row.c[kKx] != 0.0f) d = V::fma(V::set(row.c[kKx]), x, d);
  if (row.c[kKm] != 0.0f) d = V::fma(V::set(row.c[kKm]), m, d);
  return V::clip(d, V::set(row.c[kLow]), V::set(row.c[kHigh]));
}

template <class V, int R>
ULAM_HD typename V::f learned_noise(const Row<R>& row, typename V::f v, typename V::f z) {
  return V::mul(exp<V>(V::fma(V::set(row.c[kLearnedSlope]), v, V::set(row.c[kLearnedOffset]))), z);
}

// The new value of register i: sum_j A[i][j] r_j + A[i][D] D + A[i][m] m + A[i][z] z over the present terms,
// in order.
template <class V, int R>
ULAM_HD typename V::f combine(const Row<R>& row, int i, const typename V::f r[R], typename V::f x0, typename V::f m,
                              typename V::f z) {
  const uint32_t terms = row.terms[i];
  typename V::f t;
  if (terms & 1)
    t = V::mul(V::set(row.a(i, 0)), r[0]);
  else
    t = V::set(terms ? -0.0f : 0.0f);
  ULAM_UNROLL
  for (int j = 1; j < R; ++j)
    if (terms >> j & 1) t = V::fma(V::set(row.a(i, j)), r[j], t);
  if (terms >> R & 1) t = V::fma(V::set(row.a(i, R)), x0, t);
  if (terms >> (R + 1) & 1) t = V::fma(V::set(row.a(i, R + 1)), m, t);
  if (terms >> (R + 2) & 1) t = V::fma(V::set(row.a(i, R + 2)), z, t);
  return t;
}

// Each register that the row writes takes its new value; the old values are on the right.
template <class V, int R>
ULAM_HD void update_registers(const Row<R>& row, typename V::f r[R], typename V::f x0, typename V::f m,
                              typename V::f z) {
  typename V::f next[R];
  ULAM_UNROLL
  for (int i = 0; i < R; ++i) next[i] = combine<V>(row, i, r, x0, m, z);
  ULAM_UNROLL
  for (int i = 0; i < R; ++i)
    if (row.flags >> i & 1) r[i] = next[i];
}

}  // namespace ulam
