// Isokinetic dynamics, velocities of length 1 that a score turns: what belongs to one chain of MCLMC and MAMS.
//
// Sums, products, quotients and roots of float64 alone, each rounded once and none fused: the bits that torch's
// elementwise operations have in ulam.samplers.mcmc.isokinetic, which says what they compute, on any device.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "ulam/weights.h"

namespace ulam {

// e^x and e^x - 1 of x <= 0, by x = n ln 2 + r and the series of (e^r - 1) / r up to r^15. NaN passes.
struct Decay {
  double kept, fall;

  ULAM_HD explicit Decay(double x) {
    constexpr double kSeries[16] = {1.0,
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
                                    1.0 / 1307674368000,
                                    1.0 / 20922789888000};
    const Reduced e(x);
    const double rise = e.power * (e.r * in_pairs(kSeries, e.r));
    kept = x < kLeastExponent ? 0.0 : e.power + rise;
    fall = (e.power - 1.0) + rise;
  }
};

// log(z) of 0 < z <= 1, where y is z - 1 with more digits. NaN passes.
ULAM_HD double log_of(double z, double y) {
  constexpr double kSeries[16] = {1.0,      1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9,  1.0 / 11, 1.0 / 13, 1.0 / 15,
                                  1.0 / 17, 1.0 / 19, 1.0 / 21, 1.0 / 23, 1.0 / 25, 1.0 / 27, 1.0 / 29, 1.0 / 31};
  uint64_t bits;
  std::memcpy(&bits, &z, 8);
  const uint64_t above = ((bits - 0x3FE6A09E667F3BCDull) + (1023ull << 52)) >> 52;  // 1023 + k for z = 2^k f
  const uint64_t of_f = bits - ((above - 1023) << 52), of_n = above | 0x4330000000000000ull;
  double f, n;
  std::memcpy(&f, &of_f, 8);
  std::memcpy(&n, &of_n, 8);
  n -= 0x1p52 + 1023.0;
  const double t = n == 0.0 ? y : f - 1.0, s = t / (2.0 + t);
  const double found = n * 0x1.62e42feep-1 + ((2.0 * s) * in_pairs(kSeries, s * s) + n * 0x1.a39ef35793c76p-33);
  return z == z ? found : z;
}

// The kick of a velocity u along e = s / |s| for delta = time |s| / (d - 1), of the sum of (e + u)^2 over the elements:
// u' is along `along` e + `zeta` (u - `cosine` e), and the kinetic energy grows by (d - 1) `log_growth`.
struct Kick {
  double along, zeta, cosine, log_growth;

  ULAM_HD Kick(double delta, double squares) {
    const Decay decay(-delta);
    const double quarter = 0.25 * squares, p = quarter < 0.0 ? 0.0 : quarter > 1.0 ? 1.0 : quarter;
    zeta = decay.kept;
    const double q = ((1.0 - p) * zeta) * zeta;
    along = p - q;
    cosine = 2.0 * p - 1.0;
    log_growth = delta + log_of(p + q, (1.0 - p) * (decay.fall * (decay.fall + 2.0)));
  }
};

// u' of one element, before its length is made 1.
ULAM_HD double turned(double u, double e, double along, double zeta, double cosine) {
  return along * e + zeta * (u - cosine * e);
}

// Whether, by the squared length of u', nothing else is left than what points straight against the score: u stays, and
// log_growth is -delta.
ULAM_HD bool stays(double size) { return size < 1e-280; }

// nu of MCLMC: nu^2 = (exp(2 step / length) - 1) / d.
ULAM_HD double refreshment(double step, double length, bool in_roots, double d) {
  const double turns = 2.0 * step / (in_roots ? length * sqrt(d) : length);
  const Decay decay(-(turns > 100.0 ? 100.0 : turns));
  return sqrt(-decay.fall / decay.kept / d);
}

}  // namespace ulam
