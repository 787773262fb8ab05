// The sum of the squares of the noise that a step used, in whole numbers: sums of whole numbers do not depend on their
// order, so every backend has the same. See kernels/ulam_kernels/squares.py.
#pragma once

#include <cstdint>

#include "ulam/platform.h"

namespace ulam {

constexpr int kSquaresDoublings = 10;  // of z; twice as many of its square
constexpr float kSquaresScale = 1 << 2 * kSquaresDoublings;
// Only given noise may reach this or be NaN: such an element adds nothing, and its chain's sum is negative from then
// on. Terms are below 2^30; of generated noise below 2^26, as its normals are below 6.8.
constexpr float kSquaresLimit = 32.0f;
constexpr uint64_t kSquaresFailed = 1ull << 63;

// rint(2^20 z^2), where z^2 is rounded to fp32: the scale moves its exponent alone.
template <class V>
ULAM_HD typename V::u square_term(typename V::f z) {
  return V::rounded(V::mul(z, V::mul(z, V::set(kSquaresScale))));
}

// The same of 2^10 z.
template <class V>
ULAM_HD typename V::u square_term_of_scaled(typename V::f z) {
  return V::rounded(V::mul(z, z));
}

}  // namespace ulam
