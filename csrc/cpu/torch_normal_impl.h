// mt19937 and torch's Box-Muller over one instruction set's lanes, in an unnamed namespace like kernels_impl.h.
//
// The logarithm, sine and cosine are those of Moshier's Cephes library for float, in the order of operations and with
// the fused products of torch's AVX2 code, so that every bit is torch's (tests/kernels/test_torch_normal.py: all 2^24
// radii and angles). A scaling by a power of two rounds nothing and is folded into the constants.
#pragma once

#include <cstring>

#include "torch_normal.h"
#include "ulam/scalar.h"

namespace ulam::cpu {
namespace {

constexpr int kStateWords = 624, kMiddle = 397;

template <class T>
ULAM_HD T load_as(const void* p) {
  T x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// One lane, for what is left over by the vectors.
struct TorchScalar : Scalar {
  static constexpr int groups = 1;
  template <int n>
  static ULAM_HD u shr(u a) {
    return a >> n;
  }
  // a where the top bit is set, else b.
  static ULAM_HD f choose(u top, f a, f b) { return top >> 31 ? a : b; }
  static ULAM_HD void load(const uint32_t* p, u& first, u& second) {
    first = p[0];
    second = p[8];
  }
  static ULAM_HD void store(uint32_t* p, f first, f second) {
    p[0] = bits(first);
    p[8] = bits(second);
  }
};

template <class V>
ULAM_HD void extend_once(uint32_t* x) {
  using u = typename V::u;
  const u a = load_as<u>(x), b = load_as<u>(x + 1), c = load_as<u>(x + kMiddle);
  const u mixed = V::xor_(V::and_(a, 0x80000000u), V::and_(b, 0x7fffffffu));
  const u matrix = V::and_(V::sub_u(V::set_u(0), V::and_(b, 1)), 0x9908b0dfu);
  const u next = V::xor_(V::xor_(c, V::template shr<1>(mixed)), matrix);
  std::memcpy(x + kStateWords, &next, sizeof next);
}

template <class V>
void extend(uint32_t* x, int64_t count) {
  int64_t i = 0;
  for (; i + V::width <= count; i += V::width) extend_once<V>(x + i);
  for (; i < count; ++i) extend_once<TorchScalar>(x + i);
}

// The 24 bits of a word that torch makes a uniform number of.
template <class V>
ULAM_HD typename V::u tempered_bits(typename V::u y) {
  y = V::xor_(y, V::template shr<11>(y));
  y = V::xor_(y, V::and_(V::template shl<7>(y), 0x9d2c5680u));
  y = V::xor_(y, V::and_(V::template shl<15>(y), 0xefc60000u));
  return V::and_(V::xor_(y, V::template shr<18>(y)), 0xffffffu);
}

// sqrt(-2 ln u), u = 1 - word 2^-24.
template <class V>
ULAM_HD typename V::f torch_radius(typename V::u word) {
  using f = typename V::f;
  const typename V::u i = V::bits(V::fma(V::from_signed(word), V::set(-0x1p-24f), V::set(1.0f)));
  const typename V::u exponent = V::and_(V::sub_u(i, V::set_u(0x3f3504f3u)), 0xff800000u);  // of u / sqrt(1/2)
  const f e = V::from_signed(exponent);                                                     // times 2^23
  const f x = V::sub(V::as_float(V::sub_u(i, exponent)), V::set(1.0f)), z = V::mul(x, x);
  f y = V::set(7.0376836292e-2f);
  y = V::fma(y, x, V::set(-1.1514610310e-1f));
  y = V::fma(y, x, V::set(1.1676998740e-1f));
  y = V::fma(y, x, V::set(-1.2420140846e-1f));
  y = V::fma(y, x, V::set(1.4249322787e-1f));
  y = V::fma(y, x, V::set(-1.6668057665e-1f));
  y = V::fma(y, x, V::set(2.0000714765e-1f));
  y = V::fma(y, x, V::set(-2.4999993993e-1f));
  y = V::fma(y, x, V::set(3.3333331174e-1f));
  y = V::fma(V::mul(y, x), z, V::mul(e, V::set(-2.12194440e-4f * 0x1p-23f)));
  y = V::fma(z, V::set(-0.5f), y);
  y = V::fma(x, V::set(1.0f), y);
  return V::sqrt(V::mul(V::set(-2.0f), V::fma(e, V::set(0.693359375f * 0x1p-23f), y)));
}

// The point of the unit circle at the angle 2 pi word 2^-24.
template <class V>
ULAM_HD void torch_circle(typename V::u word, typename V::f& cosine, typename V::f& sine) {
  using f = typename V::f;
  const f theta = V::mul(V::from_signed(word), V::set(0x1.921fb6p+2f * 0x1p-24f));
  const typename V::u quadrant = V::template shr<22>(V::add_u(word, V::set_u(1u << 21)));  // the nearest, 0 to 4
  const f k = V::from_signed(quadrant);
  f x = V::fma(k, V::set(-1.5703125f), theta);  // pi / 2 in three parts
  x = V::fma(k, V::set(2 * -2.4187564849853515625e-4f), x);
  x = V::fma(k, V::set(2 * -3.77489497744594108e-8f), x);
  const f z = V::mul(x, x);
  f c = V::set(2.443315711809948e-5f);
  c = V::fma(c, z, V::set(-1.388731625493765e-3f));
  c = V::fma(c, z, V::set(4.166664568298827e-2f));
  c = V::fma(V::mul(c, z), z, V::mul(z, V::set(-0.5f)));
  c = V::fma(c, V::set(1.0f), V::set(1.0f));
  f s = V::set(-1.9515295891e-4f);
  s = V::fma(s, z, V::set(8.3321608736e-3f));
  s = V::fma(s, z, V::set(-1.6666654611e-1f));
  s = V::fma(V::mul(s, z), x, x);
  const typename V::u odd = V::template shl<31>(quadrant);
  const typename V::u sine_sign = V::and_(V::template shl<30>(quadrant), 0x80000000u);
  cosine = V::as_float(V::xor_(V::bits(V::choose(odd, s, c)), V::xor_(sine_sign, odd)));
  sine = V::as_float(V::xor_(V::bits(V::choose(odd, c, s)), sine_sign));
}

template <class V>
ULAM_HD void transform_once(uint32_t* words) {
  typename V::u first, second;
  V::load(words, first, second);
  const typename V::f r = torch_radius<V>(tempered_bits<V>(first)), zero = V::set(0.0f);
  typename V::f c, s;
  torch_circle<V>(tempered_bits<V>(second), c, s);
  V::store(words, V::fma(r, c, zero), V::fma(r, s, zero));  // torch adds the mean: there is no -0
}

template <class V>
void transform(uint32_t* words, int64_t groups) {
  int64_t g = 0;
  for (; g + V::groups <= groups; g += V::groups)
    for (int j = 0; j < 8; j += V::width) transform_once<V>(words + 16 * g + j);
  for (; g < groups; ++g)
    for (int j = 0; j < 8; ++j) transform_once<TorchScalar>(words + 16 * g + j);
}

}  // namespace
}  // namespace ulam::cpu
