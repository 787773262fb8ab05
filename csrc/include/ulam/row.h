// One row of a sampler's table, and what executing it does to one element.
//
// No sampler is known here: a row is coefficients. The layout mirrors kernels/ulam_kernels/table.py.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ulam/elementary.h"
#include "ulam/platform.h"

namespace ulam {

constexpr int kMaxRegisters = 5;

// go(c), where the constant c is a state's number of registers.
template <class Go>
auto with_registers(int registers, const Go& go) {
  switch (registers) {
    case 1:
      return go(std::integral_constant<int, 1>());
    case 2:
      return go(std::integral_constant<int, 2>());
    case 3:
      return go(std::integral_constant<int, 3>());
    case 4:
      return go(std::integral_constant<int, 4>());
    default:
      return go(std::integral_constant<int, kMaxRegisters>());
  }
}

enum Column : int { kKx, kKm, kLow, kHigh, kLearnedSlope, kLearnedOffset, kNextScale, kUpdate };

enum Flag : uint32_t {
  kWrites = 0x1fu,  // bit i: register i is written; no bit at all: the row is idle
  kReadsModel = 1u << 5,
  kReadsNoise = 1u << 6,
  kUsesX0 = 1u << 7,
  kLearned = 1u << 8,
  kThreshold = 1u << 9,   // kLow and kHigh hold the level of the quantile and its cap
  kNormalise = 1u << 10,  // D and z are scaled by their norms
  kReduced = kThreshold | kNormalise,
};

// What a reduction leaves for a chain, in the order of Step's `scales`.
struct Scales {
  float low, high, x0, z;
};

// What the reduction of a row with these flags and coefficients reads.
ULAM_HD uint32_t reduction_reads(uint32_t flags, const float* c) {
  const uint32_t read = (c[kKm] != 0.0f ? kReadsModel : 0u) | (flags & kNormalise ? kReadsNoise : 0u);
  return flags & kReduced ? flags & read : 0u;
}

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

// m_uncond + w (m_cond - m_uncond). Callers handle w = 1 and w = 0, which give their side untouched.
template <class V>
ULAM_HD typename V::f guide(typename V::f cond, typename V::f uncond, float w) {
  return V::fma(V::set(w), V::sub(cond, uncond), uncond);
}

// The x0 estimate before any clip, of a row's coefficients. fma(a, b, -0) is mul(a, b), sign of zero included, so
// absent terms need no special first case.
template <class V>
ULAM_HD typename V::f unclipped_x0(const float* c, typename V::f x, typename V::f m) {
  typename V::f d = V::set(c[kKx] != 0.0f || c[kKm] != 0.0f ? -0.0f : 0.0f);
  if (c[kKx] != 0.0f) d = V::fma(V::set(c[kKx]), x, d);
  if (c[kKm] != 0.0f) d = V::fma(V::set(c[kKm]), m, d);
  return d;
}

template <class V>
ULAM_HD typename V::f estimate_x0(const float* c, typename V::f x, typename V::f m) {
  return V::clip(unclipped_x0<V>(c, x, m), V::set(c[kLow]), V::set(c[kHigh]));
}

// The same on a row with a reduction.
template <class V>
ULAM_HD typename V::f estimate_x0(const float* c, const Scales& s, typename V::f x, typename V::f m) {
  return V::mul(V::set(s.x0), V::clip(unclipped_x0<V>(c, x, m), V::set(s.low), V::set(s.high)));
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

// y where the mask is 1, x where it is 0, between them elsewhere.
template <class V>
ULAM_HD typename V::f blended(typename V::f mask, typename V::f y, typename V::f x) {
  const typename V::f mixed = V::fma(mask, V::sub(y, x), x);
  return V::where_equal(mask, 1.0f, y, V::where_equal(mask, 0.0f, x, mixed));
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
