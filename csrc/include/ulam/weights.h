// Exponentials and sums of weights that are known by their logarithms, in float64, for trees of leapfrog steps.
//
// Sums, products and quotients alone, each rounded once and none fused: the bits that torch's elementwise operations
// have in ulam.samplers.mcmc.weights, on any device.
#pragma once

#include <cstdint>
#include <cstring>

#include "ulam/platform.h"

namespace ulam {

// c_0 + c_1 x + ... + c_15 x^15, in pairs, then pairs of pairs [Estrin 1960].
ULAM_HD double in_pairs(const double* c, double x) {
  const double x2 = x * x, x4 = x2 * x2, x8 = x4 * x4;
  const double p0 = c[0] + c[1] * x, p1 = c[2] + c[3] * x, p2 = c[4] + c[5] * x, p3 = c[6] + c[7] * x;
  const double p4 = c[8] + c[9] * x, p5 = c[10] + c[11] * x, p6 = c[12] + c[13] * x, p7 = c[14] + c[15] * x;
  const double q0 = p0 + p1 * x2, q1 = p2 + p3 * x2, q2 = p4 + p5 * x2, q3 = p6 + p7 * x2;
  const double s0 = q0 + q1 * x4, s1 = q2 + q3 * x4;
  return s0 + s1 * x8;
}

constexpr double kLeastExponent = -708.0;  // below it exp is taken for 0

// x <= 0, held to at least -708, as n ln 2 + r with |r| <= ln(2) / 2 [Cody and Waite], and 2^n.
struct Reduced {
  double r, power;

  ULAM_HD explicit Reduced(double x) {
    constexpr double kRounder = 0x1.8p52;  // added, it rounds to an integer, which then sits in the low bits
    const double c = x < kLeastExponent ? kLeastExponent : x;
    const double shifted = c * 0x1.71547652b82fep0 + kRounder;
    const double n = shifted - kRounder;
    r = (c - n * 0x1.62e42feep-1) - n * 0x1.a39ef35793c76p-33;
    uint64_t bits;
    std::memcpy(&bits, &shifted, 8);
    bits = (bits << 52) + (1023ull << 52);
    std::memcpy(&power, &bits, 8);
  }
};

// exp(x) of x <= 0, to 3e-16 of its value: the series of exp(r) up to r^15, times 2^n. 0 below -708. NaN passes.
ULAM_HD double exp_below(double x) {
  constexpr double kSeries[16] = {1.0,
                                  1.0,
                                  1.0 / 2,
                                  1.0 / 6,
                                  1.0 / 24,
                                  1.0 / 120,
                                  1.0 / 720,
                                  1.0 / 5040,
                                  1.0 / 40320,
                                  1.0 / 362880,
                                  1.0 / 3628800,
                                  1.0 / 39916800,
                                  1.0 / 479001600,
                                  1.0 / 6227020800,
                                  1.0 / 87178291200,
                                  1.0 / 1307674368000};
  const Reduced e(x);
  const double y = in_pairs(kSeries, e.r) * e.power;
  return x < kLeastExponent ? 0.0 : y;
}

// log(e^a + e^b) = a + log(1 + x) with x = e^(b - a) for a >= b, and log(1 + x) = 2 artanh(x / (2 + x)) by its series;
// -inf where both are.
ULAM_HD double log_sum(double a, double b) {
  constexpr double kSeries[16] = {1.0,      1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13, 1.0 / 15,
                                  1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23, 1.0 / 25, 1.0 / 27, 1.0 / 29, 1.0 / 31};
  const double high = a < b ? b : a, low = a < b ? a : b;
  const double x = exp_below(low - high), s = x / (2.0 + x);
  const double sum = high + (2.0 * s) * in_pairs(kSeries, s * s);
  return high < -1.7976931348623157e308 ? high : sum;
}

}  // namespace ulam
