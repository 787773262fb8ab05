// The activations of small networks in correctly rounded fp32 operations: the same bits everywhere.
//
// V has the members of ulam/scalar.h, and add, div and less(a, b, then, otherwise). Where exp would leave its range x
// is held: far out on the left the result is below 1e-35 in size and not 0. NaN passes. Errors are bounded in
// tests/kernels/test_activations.py.
#pragma once

#include "ulam/elementary.h"

namespace ulam {

// The order is that of kernels/ulam_kernels/instructions.py. A slope is a derivative.
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
  kElu,
  kSiluSlope,
  kReluSlope,
  kGeluSlope,
  kGeluTanhSlope,
  kTanhSlope,
  kSigmoidSlope,
  kMishSlope,
  kLeakyReluSlope,
  kEluSlope
};

// 1 + exp(-x), of x at least -88; of NaN it may be anything.
template <class V>
ULAM_HD typename V::f one_and_exp_minus(typename V::f x) {
  return V::add(V::set(1.0f), exp_within<V>(V::at_least(V::sub(V::set(0.0f), x), V::set(-86.0f))));
}

// x / (1 + exp(-x))
template <class V>
ULAM_HD typename V::f silu(typename V::f x) {
  const typename V::f held = V::at_least(x, V::set(-88.0f));
  return V::div(held, one_and_exp_minus<V>(held));
}

template <class V>
ULAM_HD typename V::f sigmoid(typename V::f x) {
  return V::nan_or(x, V::div(V::set(1.0f), one_and_exp_minus<V>(V::at_least(x, V::set(-88.0f)))));
}

// x Phi(x), by the normal tail of |x|; the square in the exponent is exact to the second order.
template <class V>
ULAM_HD typename V::f gelu(typename V::f x) {
  using f = typename V::f;
  const f zero = V::set(0.0f), one = V::set(1.0f), held = V::clip(x, V::set(-13.0f), V::set(16.0f));
  const f a = V::less(held, zero, V::sub(zero, held), held);
  const f square = V::mul(a, a), rest = V::fma(a, a, V::sub(zero, square));
  const f density = V::mul(exp<V>(V::mul(square, V::set(-0.5f))), V::fma(rest, V::set(-0.5f), one));
  const f tail = V::mul(density, scaled_tail<V>(a));
  return V::mul(V::at_least(x, V::set(-13.0f)), V::less(x, zero, tail, V::sub(one, tail)));
}

// x / (1 + exp(-2 u)), u = sqrt(2 / pi) (x + 0.044715 x^3): x (1 + tanh u) / 2.
template <class V>
ULAM_HD typename V::f gelu_tanh(typename V::f x) {
  using f = typename V::f;
  const f held = V::at_least(x, V::set(-10.0f));
  const f cubic = V::fma(V::mul(held, held), V::set(0x1.6e4e26p-5f), V::set(1.0f));
  return V::div(held, one_and_exp_minus<V>(V::mul(V::mul(held, V::set(0x1.988454p+0f)), cubic)));
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
  const f held = V::at_least(x, V::set(-86.0f));
  const f e = exp_within<V>(V::less(V::set(20.0f), held, V::set(20.0f), held));
  const f n = V::fma(e, e, V::add(e, e));
  return V::mul(held, V::div(n, V::add(n, V::set(2.0f))));
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

// The derivative of x / (1 + exp(-y)), w = x dy/dx: (1 + e (1 + w)) / (1 + e)^2 for y >= 0, e (1 + e + w) / (1 + e)^2
// below, e = exp(-|y|), y in [-86, 86]. NaN of w passes.
template <class V>
ULAM_HD typename V::f gated_slope(typename V::f y, typename V::f w) {
  using f = typename V::f;
  const f zero = V::set(0.0f), one = V::set(1.0f);
  const f e = exp_within<V>(V::less(y, zero, y, V::sub(zero, y))), above = V::add(e, one);
  const f right = V::fma(e, V::add(one, w), one), left = V::mul(e, V::add(above, w));
  return V::div(V::less(y, zero, left, right), V::mul(above, above));
}

template <class V>
ULAM_HD typename V::f silu_slope(typename V::f x) {
  const typename V::f held = V::clip(x, V::set(-86.0f), V::set(86.0f));
  return gated_slope<V>(held, held);
}

// Phi(x) + x phi(x): below 0 density (tail - |x| / sqrt(2 pi)), above 0 that from 1.
template <class V>
ULAM_HD typename V::f gelu_slope(typename V::f x) {
  using f = typename V::f;
  const f zero = V::set(0.0f), one = V::set(1.0f), held = V::clip(x, V::set(-13.0f), V::set(13.0f));
  const f a = V::less(held, zero, V::sub(zero, held), held);
  const f square = V::mul(a, a), rest = V::fma(a, a, V::sub(zero, square));
  const f density = V::mul(exp<V>(V::mul(square, V::set(-0.5f))), V::fma(rest, V::set(-0.5f), one));
  const f below = V::mul(density, V::fma(a, V::set(-0x1.988454p-2f), scaled_tail<V>(a)));
  return V::less(x, zero, below, V::sub(one, below));
}

template <class V>
ULAM_HD typename V::f gelu_tanh_slope(typename V::f x) {
  using f = typename V::f;
  const f one = V::set(1.0f), held = V::clip(x, V::set(-10.0f), V::set(10.0f));
  const f square = V::mul(held, held), scaled = V::mul(held, V::set(0x1.988454p+0f));
  const f y = V::mul(scaled, V::fma(square, V::set(0x1.6e4e26p-5f), one));
  const f w = V::mul(scaled, V::fma(square, V::set(0x1.12ba9ep-3f), one));
  return gated_slope<V>(V::clip(y, V::set(-86.0f), V::set(86.0f)), w);
}

// e / (1 + e)^2, e = exp(-|x|), for x in [-86, 86]; of NaN it may be anything.
template <class V>
ULAM_HD typename V::f bell(typename V::f x) {
  const typename V::f zero = V::set(0.0f);
  const typename V::f e = exp_within<V>(V::less(x, zero, x, V::sub(zero, x))), above = V::add(e, V::set(1.0f));
  return V::div(e, V::mul(above, above));
}

template <class V>
ULAM_HD typename V::f tanh_slope(typename V::f x) {
  const typename V::f held = V::clip(x, V::set(-43.0f), V::set(43.0f));
  return V::nan_or(x, V::mul(bell<V>(V::add(held, held)), V::set(4.0f)));
}

template <class V>
ULAM_HD typename V::f sigmoid_slope(typename V::f x) {
  return V::nan_or(x, bell<V>(V::clip(x, V::set(-86.0f), V::set(86.0f))));
}

// (n (n + 2) + 4 x e (e + 1)) / (n + 2)^2, n = e (e + 2), e = exp(x): 1 above 20.
template <class V>
ULAM_HD typename V::f mish_slope(typename V::f x) {
  using f = typename V::f;
  const f held = V::clip(x, V::set(-86.0f), V::set(20.0f)), e = exp_within<V>(held);
  const f n = V::fma(e, e, V::add(e, e)), below = V::add(n, V::set(2.0f));
  const f above = V::fma(n, below, V::mul(V::mul(held, V::set(4.0f)), V::fma(e, e, e)));
  return V::div(above, V::mul(below, below));
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
    case Activation::kSiluSlope:
      return silu_slope<V>(x);
    case Activation::kReluSlope:
      return V::nan_or(x, V::less(zero, x, V::set(1.0f), zero));
    case Activation::kGeluSlope:
      return gelu_slope<V>(x);
    case Activation::kGeluTanhSlope:
      return gelu_tanh_slope<V>(x);
    case Activation::kTanhSlope:
      return tanh_slope<V>(x);
    case Activation::kSigmoidSlope:
      return sigmoid_slope<V>(x);
    case Activation::kMishSlope:
      return mish_slope<V>(x);
    case Activation::kLeakyReluSlope:
      return V::nan_or(x, V::less(zero, x, V::set(1.0f), V::set(parameter)));
    case Activation::kEluSlope:
      return V::less(zero, x, V::set(1.0f), V::mul(V::set(parameter), exp<V>(x)));
    default:
      return x;
  }
}

}  // namespace ulam
