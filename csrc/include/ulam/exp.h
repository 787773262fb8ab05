// exp in correctly rounded fp32 operations, so that rows with a learned variance have the same bits
// everywhere.
#pragma once

#include "ulam/platform.h"

namespace ulam {

// Cody-Waite reduction to |r| <= ln(2) / 2, a minimax polynomial, a shift of the exponent: at most 0.9 ulp
// off. The argument is held to [-86, 88], where the result is a normal number; NaN passes.
template <class V>
ULAM_HD typename V::f exp(typename V::f x) {
  using f = typename V::f;
  const f y = V::clip(x, V::set(-86.0f), V::set(88.0f));
  const f t = V::fma(y, V::set(0x1.715476p+0f), V::set(0x1.8p+23f));  // its low bits are the integer n
  const typename V::u n = V::sub_u(V::bits(t), V::set_u(0x4B400000u));
  const f k = V::sub(t, V::set(0x1.8p+23f));
  f r = V::fma(k, V::set(-0x1.62e4p-1f), y);
  r = V::fma(k, V::set(-0x1.7f7d1cp-20f), r);
  f p = V::set(0x1.6a4d6p-10f);
  p = V::fma(p, r, V::set(0x1.12398ep-7f));
  p = V::fma(p, r, V::set(0x1.5558bp-5f));
  p = V::fma(p, r, V::set(0x1.555492p-3f));
  p = V::fma(p, r, V::set(0x1.fffffcp-2f));
  p = V::fma(p, r, V::set(1.0f));
  p = V::fma(p, r, V::set(1.0f));
  return V::nan_or(x, V::as_float(V::add_u(V::bits(p), V::template shl<23>(n))));
}

}  // namespace ulam
