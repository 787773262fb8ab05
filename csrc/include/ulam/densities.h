// The built-in densities: energies E and scores -grad E in fp32, one rounding an operation, on the host and the device.
//
// These are the parts of the formulas that belong to one element or to one chain; the backends loop over elements, and
// sum over them in the order of halved_sum below. V has, beyond the members of ulam/scalar.h, `add`, `div` and `root`,
// correctly rounded over all numbers. An energy that is a sum over elements is summed in float64.
#pragma once

#include "ulam/elementary.h"
#include "ulam/mcmc.h"
#include "ulam/noise.h"

namespace ulam {

// The least power of two >= d: element l adds element l + w for w = half of it, ... 1.
ULAM_HD int sum_width(int64_t d) {
  int width = 1;
  while (width < d) width *= 2;
  return width;
}

// Gaussian: u = x - mean, s = -A u, E = sum_i -1/2 u_i s_i.
template <class V>
ULAM_HD typename V::f gaussian_term(typename V::f u, typename V::f score) {
  return V::mul(V::mul(V::set(-0.5f), u), score);
}

// Double well: E = sum_i a (x_i^2 - b)^2.
template <class V>
struct DoubleWell {
  using f = typename V::f;
  float a, b;
  ULAM_HD explicit DoubleWell(const float* p) : a(p[0]), b(p[1]) {}
  ULAM_HD f distance(f x) const { return V::fma(x, x, V::set(-b)); }
  ULAM_HD f score(f x) const { return V::mul(V::mul(V::set(-4.0f * a), x), distance(x)); }
  ULAM_HD f term(f x) const { return V::mul(V::mul(V::set(a), distance(x)), distance(x)); }
};

// Rosenbrock: E = sum over pairs (x, y) of b (1 - x)^2 + a (y - x^2)^2.
template <class V>
struct Rosenbrock {
  using f = typename V::f;
  float a, b;
  ULAM_HD explicit Rosenbrock(const float* p) : a(p[0]), b(p[1]) {}
  ULAM_HD void operator()(f x, f y, f score[2], f term[2]) const {
    const f t = V::fma(V::mul(V::set(-1.0f), x), x, y), one = V::sub(V::set(1.0f), x);
    score[0] = V::fma(V::set(2.0f * b), one, V::mul(V::mul(V::set(4.0f * a), t), x));
    score[1] = V::mul(V::set(-2.0f * a), t);
    term[0] = V::mul(V::mul(V::set(b), one), one);
    term[1] = V::mul(V::mul(V::set(a), t), t);
  }
};

// Neal's funnel: x_0 and what its exponential makes of the others; `squares` is the sum of their squares.
template <class V>
struct Funnel {
  using f = typename V::f;
  float precision, rest;  // 1 / std^2, (d - 1) / 2
  f first, inverse, half;
  ULAM_HD Funnel(const float* p, f x0)
      : precision(p[0]),
        rest(p[1]),
        first(x0),
        inverse(exp<V>(V::mul(V::set(-1.0f), x0))),
        half(V::mul(V::set(0.5f), inverse)) {}
  ULAM_HD f score(f x) const { return V::mul(V::mul(V::set(-1.0f), inverse), x); }
  ULAM_HD f term(f x) const { return V::mul(V::mul(half, x), x); }
  ULAM_HD f first_score(f squares) const {
    return V::fma(V::set(-precision), first, V::sub(V::mul(half, squares), V::set(rest)));
  }
  ULAM_HD f first_term() const {
    return V::fma(V::mul(V::set(0.5f * precision), first), first, V::mul(V::set(rest), first));
  }
};

// Ring: E = (radius - |x|)^2 / (2 std^2), of the sum of squares.
template <class V>
struct Ring {
  using f = typename V::f;
  f energy, factor;  // the score is factor x
  ULAM_HD Ring(const float* p, f squares) {
    const f r = V::root(squares), inward = V::sub(V::set(p[0]), r), pull = V::mul(inward, V::set(p[1]));
    energy = V::mul(V::mul(V::set(0.5f), inward), pull);
    factor = V::div(pull, V::where_equal(r, 0.0f, V::set(1.0f), r));
  }
};

// Mixture: the exponent of component k, of its squared distance; p is [constants | 1 / std^2 | means].
template <class V>
ULAM_HD typename V::f mixture_exponent(const float* p, int64_t components, int64_t k, typename V::f squares) {
  return V::fma(V::set(-0.5f * p[components + k]), squares, V::set(p[k]));
}
template <class V>
ULAM_HD typename V::f greater(typename V::f a, typename V::f b) {  // a < b ? b : a
  return V::clip(a, b, V::set(Scalar::as_float(0x7f800000u)));
}

}  // namespace ulam
