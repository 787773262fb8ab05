// exp, logarithms and the normal distribution's tail, in correctly rounded fp32 operations: the same bits everywhere.
//
// V has the members of ulam/scalar.h; expm1, exp_excess and scaled_tail also ask for add, div, less(a, b, then,
// otherwise) and any(a), whether a lane is not 0; exp_within's callers for at_least(x, lo), which passes NaN.
#pragma once

#include "ulam/platform.h"

namespace ulam {

// exp's argument, held to [-86, 88], as n ln 2 + r with |r| <= ln(2) / 2 [Cody and Waite], and the minimax polynomial
// p(r) of exp(r) = 1 + r + r^2 p.
template <class V>
struct ExpReduced {
  typename V::u n;
  typename V::f r, p;

  ULAM_HD explicit ExpReduced(typename V::f x) : ExpReduced(V::clip(x, V::set(-86.0f), V::set(88.0f)), true) {}
  ULAM_HD ExpReduced(typename V::f x, bool /* held to [-86, 88] */) {
    using f = typename V::f;
    const f rounded = V::fma(x, V::set(0x1.715476p+0f), V::set(0x1.8p+23f));  // its low bits are the integer n
    n = V::sub_u(V::bits(rounded), V::set_u(0x4B400000u));
    const f k = V::sub(rounded, V::set(0x1.8p+23f));
    r = V::fma(k, V::set(-0x1.62e4p-1f), x);
    r = V::fma(k, V::set(-0x1.7f7d1cp-20f), r);
    p = V::set(0x1.6a4d6p-10f);
    p = V::fma(p, r, V::set(0x1.12398ep-7f));
    p = V::fma(p, r, V::set(0x1.5558bp-5f));
    p = V::fma(p, r, V::set(0x1.555492p-3f));
    p = V::fma(p, r, V::set(0x1.fffffcp-2f));
  }
};

template <class V>
ULAM_HD typename V::f exp_of(const ExpReduced<V>& e) {
  typename V::f y = V::fma(e.p, e.r, V::set(1.0f));
  y = V::fma(y, e.r, V::set(1.0f));
  return V::as_float(V::add_u(V::bits(y), V::template shl<23>(e.n)));
}

// At most 0.9 ulp off; the result is a normal number. NaN passes.
template <class V>
ULAM_HD typename V::f exp(typename V::f x) {
  return V::nan_or(x, exp_of<V>(ExpReduced<V>(x)));
}

// The same of x in [-86, 88]; of NaN it may be anything.
template <class V>
ULAM_HD typename V::f exp_within(typename V::f x) {
  return exp_of<V>(ExpReduced<V>(x, true));
}

// ln x of a normal number x > 0, about 1.2 ulp off at most; NaN passes.
template <class V>
ULAM_HD typename V::f log(typename V::f x) {
  using f = typename V::f;
  const typename V::u i = V::bits(x);
  const typename V::u e = V::and_(V::sub_u(i, V::set_u(0x3f3504f3u)), 0xff800000u);  // exponent of x / sqrt(1/2)
  const f r = V::sub(V::as_float(V::sub_u(i, e)), V::set(1.0f));
  f q = V::set(0x1.65fd98p-4f);
  q = V::fma(q, r, V::set(-0x1.250fd8p-3f));
  q = V::fma(q, r, V::set(0x1.317f18p-3f));
  q = V::fma(q, r, V::set(-0x1.535ac6p-3f));
  q = V::fma(q, r, V::set(0x1.98d330p-3f));
  q = V::fma(q, r, V::set(-0x1.0004aep-2f));
  q = V::fma(q, r, V::set(0x1.5556f2p-2f));
  q = V::fma(q, r, V::set(-0x1.fffffap-2f));
  const f y = V::fma(V::mul(q, r), r, r);
  return V::nan_or(x, V::fma(V::from_signed(e), V::set(0x1.62e43p-24f), y));
}

// ln x of a positive normal number, by the polynomial of noise-v1's radius.
template <class V>
ULAM_HD typename V::f radius_log(typename V::f x) {
  using f = typename V::f;
  const typename V::u i = V::bits(x);
  const typename V::u e = V::and_(V::sub_u(i, V::set_u(0x3f2aaaabu)), 0xff800000u);
  const f m = V::sub(V::as_float(V::sub_u(i, e)), V::set(1.0f));
  f q = V::set(-0x1.1f28p-2f);
  q = V::fma(q, m, V::set(0x1.3b0c5cp-2f));
  q = V::fma(q, m, V::set(-0x1.1ea89ap-2f));
  q = V::fma(q, m, V::set(0x1.5038p-2f));
  q = V::fma(q, m, V::set(-0x1.99d3bp-2f));
  q = V::fma(q, m, V::set(0x1.00144ep-1f));
  q = V::fma(q, m, V::set(-0x1.5554fcp-1f));
  q = V::fma(q, m, V::set(0x1.ffffd6p-1f));
  q = V::fma(q, m, V::set(-0x1p+1f));
  return V::mul(V::set(-0.5f), V::fma(V::from_signed(e), V::set(-0x1.62e43p-23f), V::mul(q, m)));
}

// exp(x) = s (1 + r + t) with s a power of two and t of order r^2.
template <class V>
struct ExpParts {
  typename V::f s, r, t;

  ULAM_HD explicit ExpParts(typename V::f x) {
    const ExpReduced<V> e(x);
    s = V::as_float(V::template shl<23>(V::add_u(e.n, V::set_u(127u))));
    r = e.r;
    t = V::mul(V::mul(e.p, e.r), e.r);
  }
};

// exp(x) - 1, without cancellation.
template <class V>
ULAM_HD typename V::f expm1(typename V::f x) {
  const ExpParts<V> e(x);
  return V::nan_or(x, V::fma(e.s, V::add(e.r, e.t), V::sub(e.s, V::set(1.0f))));
}

// exp(x) - 1 - x, without cancellation: about x^2 / 2 for small x.
template <class V>
ULAM_HD typename V::f exp_excess(typename V::f x) {
  const ExpParts<V> e(x);
  const typename V::f linear = V::sub(V::fma(e.s, e.r, V::sub(e.s, V::set(1.0f))), x);
  return V::nan_or(x, V::fma(e.s, e.t, linear));
}

// exp(a^2 / 2) times the standard normal's tail beyond a, for a >= 0: from 1/2 down to 1 / (a sqrt(2 pi)). A polynomial
// in (a - 7/2) / (a + 7/2), divided by a + 7/2 [Shepherd and Laframboise 1981]; about 4e-7 of the value off at most.
template <class V>
ULAM_HD typename V::f scaled_tail(typename V::f a) {
  using f = typename V::f;
  const f inverse = V::div(V::set(1.0f), V::add(a, V::set(3.5f)));
  const f t = V::fma(V::set(-7.0f), inverse, V::set(1.0f));
  f p = V::set(-0x1.9709bep-15f);
  p = V::fma(p, t, V::set(0x1.449caep-15f));
  p = V::fma(p, t, V::set(0x1.d5776ap-12f));
  p = V::fma(p, t, V::set(-0x1.bf45a0p-12f));
  p = V::fma(p, t, V::set(-0x1.9fd132p-9f));
  p = V::fma(p, t, V::set(0x1.a81c14p-8f));
  p = V::fma(p, t, V::set(0x1.1d1fd6p-6f));
  p = V::fma(p, t, V::set(-0x1.db57d2p-4f));
  p = V::fma(p, t, V::set(0x1.42fef4p-2f));
  p = V::fma(p, t, V::set(-0x1.219152p-1f));
  p = V::fma(p, t, V::set(0x1.7d241ap-1f));
  return V::mul(p, inverse);
}

}  // namespace ulam
