// The activations of small networks in correctly rounded fp32 operations: the same bits everywhere.
//
// V has the members of ulam/scalar.h, and add, div and less(a, b, then, otherwise). exp saturates at -86 and 88, so
// that far out on the left, where the exact value is below 1e-35 in size, x is multiplied by 0: infinities give NaN
// there, as the formulas do. Errors are bounded in tests/kernels/test_activations.py.
#pragma once

#include "ulam/elementary.h"

namespace ulam {

// The order is that of kernels/ulam_kernels/networks.py.
enum class Activation : int {
  kIdentity,
  kSilu,
  kRelu,
  kGelu,
  kGeluTanh,
  kTanh,
  kSigmoid,
  kMish,
  kSoftplus,
  kLeakyRelu,
  kElu
};

// exp(-x), which needs no negation of its own.
template <class V>
ULAM_HD typename V::f exp_minus(typename V::f x) {
  return exp<V>(V::sub(V::set(0.0f), x));
}

// y, and 0 times x where x < least.
template <class V>
ULAM_HD typename V::f from(float least, typename V::f x, typename V::f y) {
  return V::less(x, V::set(least), V::mul(x, V::set(0.0f)), y);
}

// x / (1 + exp(-x))
template <class V>
ULAM_HD typename V::f silu(typename V::f x) {
  return from<V>(-88.0f, x, V::div(x, V::add(V::set(1.0f), exp_minus<V>(x))));
}

template <class V>
ULAM_HD typename V::f sigmoid(typename V::f x) {
  return V::div(V::set(1.0f), V::add(V::set(1.0f), exp_minus<V>(x)));
}

// x Phi(x), by the normal tail of |x|; the square in the exponent is exact to the second order.
template <class V>
ULAM_HD typename V::f gelu(typename V::f x) {
  using f = typename V::f;
  const f zero = V::set(0.0f), one = V::set(1.0f);
  const f a = V::clip(V::less(x, zero, V::sub(zero, x), x), zero, V::set(16.0f));
  const f square = V::mul(a, a), rest = V::fma(a, a, V::sub(zero, square));
  const f density = V::mul(exp<V>(V::mul(square, V::set(-0.5f))), V::fma(rest, V::set(-0.5f), one));
  const f tail = V::mul(density, scaled_tail<V>(a));
  return from<V>(-13.0f, x, V::mul(x, V::less(x, zero, tail, V::sub(one, tail))));
}

// x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3): x (1 + tanh u) / 2.
template <class V>
ULAM_HD typename V::f gelu_tanh(typename V::f x) {
  using f = typename V::f;
  const f cubic = V::fma(V::mul(x, x), V::set(0x1.6e4e26p-5f), V::set(1.0f));
  const f twice = V::mul(V::mul(x, V::set(0x1.988454p+0f)), cubic);
  return from<V>(-10.0f, x, V::div(x, V::add(V::set(1.0f), exp_minus<V>(twice))));
}

// e / (e + 2), e = exp(2 x) - 1
template <class V>
ULAM_HD typename V::f tanh(typename V::f x) {
  const typename V::f e = expm1<V>(V::add(x, x));
  return V::div(e, V::add(e, V::set(2.0f)));
}

// x n / (n + 2), n = e (e + 2), e = exp(x): x tanh(ln(1 + e)), which is x itself above 20.
template <class V>
ULAM_HD typename V::f mish(typename V::f x) {
  using f = typename V::f;
  const f e = exp<V>(V::clip(x, V::set(-86.0f), V::set(20.0f)));
  const f n = V::fma(e, e, V::add(e, e));
  return from<V>(-86.0f, x, V::mul(x, V::div(n, V::add(n, V::set(2.0f)))));
}

// max(x, 0) + ln(1 + exp(-|x|)), the logarithm with what its argument loses by rounding.
template <class V>
ULAM_HD typename V::f softplus(typename V::f x) {
  using f = typename V::f;
  const f zero = V::set(0.0f), one = V::set(1.0f);
  const f e = exp<V>(V::less(x, zero, x, V::sub(zero, x))), above = V::add(one, e);
  const f lost = V::div(V::sub(e, V::sub(above, one)), above);
  return V::add(V::less(x, zero, zero, x), V::add(log<V>(above), lost));
}

template <class V>
ULAM_HD typename V::f activated(Activation function, float parameter, typename V::f x) {
  const typename V::f zero = V::set(0.0f);
  switch (function) {
    case Activation::kSilu:
      return silu<V>(x);
    case Activation::kRelu:
      return V::less(x, zero, zero, x);
    case Activation::kGelu:
      return gelu<V>(x);
    case Activation::kGeluTanh:
      return gelu_tanh<V>(x);
    case Activation::kTanh:
      return tanh<V>(x);
    case Activation::kSigmoid:
      return sigmoid<V>(x);
    case Activation::kMish:
      return mish<V>(x);
    case Activation::kSoftplus:
      return softplus<V>(x);
    case Activation::kLeakyRelu:
      return V::less(x, zero, V::mul(V::set(parameter), x), x);
    case Activation::kElu:
      return V::less(x, zero, V::mul(V::set(parameter), expm1<V>(x)), x);
    default:
      return x;
  }
}

}  // namespace ulam
