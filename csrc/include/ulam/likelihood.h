// The terms of a variational bound, one element each, and the operations that sum them over a chain.
//
// The arithmetic is fixed: one rounding an operation, in the order given, so that every backend has the same bits.
#pragma once

#include <cstdint>

#include "ulam/elementary.h"
#include "ulam/operations.h"

namespace ulam {

// B chains of n elements; a log-variance (log-scale) is one number a chain, or one per element.
struct GaussianKl {
  static constexpr Sharing sharing = Sharing::kChains;
  int64_t chains, elements;
  const float *mean_a, *log_var_a, *mean_b, *log_var_b;
  int per_element_a, per_element_b;
  double* out;  // [B]
};

enum Cdf : int { kExact = 0, kTanh = 1 };

// `half` is half the width of a bin, `edge` the |x| beyond which a bin is the outermost and reaches to infinity.
struct DiscretisedLikelihood {
  static constexpr Sharing sharing = Sharing::kChains;
  int64_t chains, elements;
  const float *x, *mean, *log_scale;
  int per_element;
  float half, edge;
  Cdf cdf;
  double* out;  // [B]
};

// Twice KL(N(mean_a, var_a) || N(mean_b, var_b)) of one element: exp(d) - 1 - d with d = log var_a - log var_b, and
// (mean_a - mean_b)^2 / var_b. `excess` and `precision` may be the same for a chain.
template <class V>
ULAM_HD typename V::f kl_excess(typename V::f log_var_a, typename V::f log_var_b) {
  return exp_excess<V>(V::sub(log_var_a, log_var_b));
}
template <class V>
ULAM_HD typename V::f reciprocal_exp(typename V::f x) {
  return exp<V>(V::sub(V::set(0.0f), x));
}
template <class V>
ULAM_HD typename V::f twice_kl(typename V::f mean_a, typename V::f mean_b, typename V::f excess,
                               typename V::f precision) {
  const typename V::f off = V::sub(mean_a, mean_b);
  return V::fma(V::mul(off, off), precision, excess);
}

// Where the bin of an element lies, in standard deviations from the mean: [w - h, w + h] mirrored so that w >= 0, or
// for an outermost bin [w - h, infinity).
template <class V>
struct Bin {
  typename V::f w, h, outermost;  // the last is 1 or 0

  ULAM_HD Bin(typename V::f x, typename V::f mean, typename V::f inverse_scale, float half, float edge) {
    using f = typename V::f;
    const f zero = V::set(0.0f), one = V::set(1.0f);
    h = V::mul(inverse_scale, V::set(half));
    const f z = V::mul(inverse_scale, V::sub(x, mean)), mirrored = V::sub(zero, z);
    const f upper = V::less(V::set(edge), x, one, zero), lower = V::less(x, V::set(-edge), one, zero);
    outermost = V::add(upper, lower);
    w = V::less(z, zero, mirrored, z);
    w = V::less(zero, upper, z, V::less(zero, lower, mirrored, w));
  }
};

// ln of the normal probability of a bin. The tails are those of scaled_tail, with what is common taken out of the
// logarithm, so that nothing underflows; a narrow bin near the mean is 2 h times the density and a series in h and
// Hermite polynomials of w, since there the tails would cancel. A tail that no lane needs is not worked out.
template <class V>
ULAM_HD typename V::f log_bin(const Bin<V>& bin) {
  using f = typename V::f;
  const f zero = V::set(0.0f), one = V::set(1.0f), minus_half = V::set(-0.5f), w = bin.w, h = bin.h;
  const f a = V::sub(w, h), b = V::add(w, h), u = V::mul(w, h), decay_a = V::mul(V::mul(a, a), minus_half);
  const f inner = V::sub(one, bin.outermost);
  const f narrow = V::less(u, V::set(0.5f), V::less(h, V::set(0.3f), inner, zero), zero), wide = V::sub(one, narrow);
  f probability = zero;
  if (V::any(wide)) {
    const f tail = scaled_tail<V>(V::less(a, zero, V::sub(zero, a), a));
    const f near = V::less(a, zero, V::fma(V::sub(zero, exp<V>(decay_a)), tail, one), tail);
    probability = near;
    if (V::any(V::mul(wide, inner))) {
      const f decay_b = V::less(a, zero, V::mul(V::mul(b, b), minus_half), V::mul(u, V::set(-2.0f)));
      const f beyond = V::mul(exp<V>(decay_b), scaled_tail<V>(V::less(b, zero, zero, b)));
      probability = V::less(zero, bin.outermost, near, V::sub(near, beyond));
    }
  }

  const f U = V::mul(u, u), v = V::mul(h, h);
  const f second = V::sub(U, v);
  const f fourth = V::fma(V::fma(v, V::set(-6.0f), U), U, V::mul(V::mul(v, v), V::set(3.0f)));
  f sixth = V::fma(v, V::set(-15.0f), U);
  sixth = V::fma(sixth, U, V::mul(V::mul(v, v), V::set(45.0f)));
  sixth = V::fma(sixth, U, V::mul(V::mul(V::mul(v, v), v), V::set(-15.0f)));
  f series = V::fma(second, V::set(0x1.555556p-3f), one);               // 1 / 3!
  series = V::fma(fourth, V::set(0x1.111112p-7f), series);              // 1 / 5!
  series = V::fma(sixth, V::set(0x1.a01a02p-13f), series);              // 1 / 7!
  const f density = V::mul(V::mul(h, V::set(0x1.988454p-1f)), series);  // 2 / sqrt(2 pi)

  const f taken = V::less(zero, narrow, V::mul(V::mul(w, w), minus_half), V::less(a, zero, zero, decay_a));
  const f left = V::less(zero, narrow, density, probability);
  return V::add(taken, log<V>(V::clip(left, V::set(0x1p-126f), V::set(0x1p+126f))));
}

// The same with the normal distribution approximated by 1 / (1 + exp(-p(y))), p(y) = 2 sqrt(2 / pi) (y + 0.044715 y^3)
// [Ho 2020, in the code], and no probability below 1e-12. 1 - exp(p(a) - p(b)) has p(b) - p(a) without cancellation.
template <class V>
ULAM_HD typename V::f log_bin_tanh(const Bin<V>& bin) {
  using f = typename V::f;
  const f one = V::set(1.0f), scale = V::set(0x1.988454p+0f), cubic = V::set(0x1.6e4e26p-5f), w = bin.w, h = bin.h;
  const f a = V::sub(w, h), b = V::add(w, h);
  const f p_a = V::mul(V::mul(a, scale), V::fma(V::mul(a, a), cubic, one));
  const f p_b = V::mul(V::mul(b, scale), V::fma(V::mul(b, b), cubic, one));
  const f above_a = V::div(one, V::add(one, exp<V>(p_a)));
  const f below_b = V::div(one, V::add(one, reciprocal_exp<V>(p_b)));
  const f squares = V::fma(V::mul(w, w), V::set(3.0f), V::mul(h, h));
  const f minus_gap = V::mul(V::mul(h, V::mul(scale, V::set(-2.0f))), V::fma(squares, cubic, one));
  const f inside = V::mul(V::mul(above_a, below_b), V::sub(V::set(0.0f), expm1<V>(minus_gap)));
  const f probability = V::less(V::set(0.0f), bin.outermost, above_a, inside);
  return log<V>(V::clip(probability, V::set(1e-12f), one));
}

}  // namespace ulam
