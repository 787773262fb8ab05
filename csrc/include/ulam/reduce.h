// From a chain's order statistics, or its sums of squares, to the scales of its row.
//
// The arithmetic is fixed: one rounding an operation, so that every backend has the same bits.
#pragma once

#include <cstdint>

#include "ulam/row.h"
#include "ulam/scalar.h"

namespace ulam {

// Squares are summed in lanes: element e in lane e % kLanes, then halves are added.
constexpr int kLanes = 1024;

ULAM_HD float infinity() { return Scalar::as_float(0x7f800000u); }
ULAM_HD float not_a_number() { return Scalar::as_float(0x7fc00000u); }

// Where the p-quantile of n elements lies: a fraction t from order statistic k to the next.
struct Rank {
  int64_t k;
  float t;
};

ULAM_HD Rank rank_of(float p, int64_t n) {
  const double position = static_cast<double>(p) * static_cast<double>(n - 1);
  const int64_t k = static_cast<int64_t>(position);
  return {k, static_cast<float>(position - static_cast<double>(k))};
}

// a and b are the order statistics k and k + 1 of |D|.
ULAM_HD Scales threshold_scales(float a, float b, float t, float cap) {
  float s = t == 0.0f || a == b ? a : Scalar::fma(t, Scalar::sub(b, a), a);
  s = s < 1.0f ? 1.0f : s;
  s = s > cap ? cap : s;
  return {-s, s, 1.0f / s, 1.0f};
}

// Sums of squares of z and D.
ULAM_HD Scales normalising_scales(double z, double d) {
  const double g = d == 0.0 ? 0.0 : z / d;
  return {-infinity(), infinity(), static_cast<float>(g), static_cast<float>(sqrt(g))};
}

ULAM_HD Scales no_scales() { return {-infinity(), infinity(), 1.0f, 1.0f}; }
ULAM_HD Scales nan_scales() { return {not_a_number(), not_a_number(), not_a_number(), not_a_number()}; }

}  // namespace ulam
