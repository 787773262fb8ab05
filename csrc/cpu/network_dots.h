// Products of pairs of bf16 numbers as VDPBF16PS makes them, by the instruction or without it: the same bits.
//
// A word holds two numbers, the even one in its lower half. dot(sum, x, w) is fma(x1, w1, sum), then fma(x0, w0, .),
// each rounded to nearest even; denormals, given or made, are zeros of their sign.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "lanes_scalar.h"

namespace ulam::cpu {
namespace {

template <class V, class = void>
struct HasDots : std::false_type {};
template <class V>
struct HasDots<V, std::void_t<decltype(V::has_dots)>> : std::true_type {};

template <class V>
inline typename V::f without_denormals(typename V::f x) {
  const typename V::f size = V::as_float(V::and_(V::bits(x), 0x7fffffffu));
  return V::less(size, V::set(0x1p-126f), V::as_float(V::and_(V::bits(x), 0x80000000u)), x);
}

// The bits of x rounded to bf16, in the upper halves.
template <class V>
inline typename V::u upper_bf16(typename V::f x) {
  using u = typename V::u;
  const u i = V::bits(without_denormals<V>(x));
  const u odd = V::and_(V::template shr<16>(i), 1u);
  const u rounded = V::and_(V::add_u(V::add_u(i, V::set_u(0x7fffu)), odd), 0xffff0000u);
  return V::bits(V::nan_or(x, V::as_float(rounded)));
}

template <class V>
inline typename V::u word_of_pair(typename V::f even, typename V::f odd) {
  if constexpr (HasDots<V>::value)
    return V::word_of_pair(even, odd);
  else
    return V::add_u(V::template shr<16>(upper_bf16<V>(even)), V::and_(upper_bf16<V>(odd), 0xffff0000u));
}

// sum is 0 at first, then comes from here.
template <class V>
ULAM_HD typename V::f dot(typename V::f sum, typename V::u x, typename V::u w) {
  if constexpr (HasDots<V>::value) {
    return V::dot(sum, x, w);
  } else {
    const auto upper = [](typename V::u word) { return V::as_float(V::and_(word, 0xffff0000u)); };
    const auto lower = [](typename V::u word) { return V::as_float(V::template shl<16>(word)); };
    sum = without_denormals<V>(V::fma(upper(x), upper(w), sum));
    return without_denormals<V>(V::fma(lower(x), lower(w), sum));
  }
}

}  // namespace
}  // namespace ulam::cpu
