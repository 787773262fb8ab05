// Four vectors worked on in step: one long chain of operations leaves a processor waiting, and four hide each other's
// latency. A type with a member v[4] is such a pack.
#pragma once

#include <cstdint>

namespace ulam::cpu {
namespace {

template <class T, class F, class... Packs>
inline T together_as(F f, const Packs&... a) {
  return {f(a.v[0]...), f(a.v[1]...), f(a.v[2]...), f(a.v[3]...)};
}

template <class F, class T, class... Packs>
inline T together(F f, T a, Packs... b) {
  return together_as<T>(f, a, b...);
}

// Four of V's vectors as lanes of their own, with what csrc/include/ulam/elementary.h and activations.h ask for.
template <class V>
struct FourOf {
  static constexpr int width = 4 * V::width;
  struct f {
    typename V::f v[4];
  };
  struct u {
    typename V::u v[4];
  };
  using one = typename V::f;
  using word = typename V::u;

  static inline f set(float x) { return {V::set(x), V::set(x), V::set(x), V::set(x)}; }
  static inline u set_u(uint32_t x) { return {V::set_u(x), V::set_u(x), V::set_u(x), V::set_u(x)}; }
  static inline f load(const float* p) {
    return {V::load(p), V::load(p + V::width), V::load(p + 2 * V::width), V::load(p + 3 * V::width)};
  }
  template <class Type>
  static inline void store(float* p, Type type, int64_t i, f x) {
    for (int k = 0; k < 4; ++k) V::store(p, type, i + k * V::width, x.v[k]);
  }

#define ULAM_IN_STEP(operation)                                                   \
  template <class T, class... Rest>                                               \
  static inline T operation(T a, Rest... b) {                                     \
    return together([](auto... each) { return V::operation(each...); }, a, b...); \
  }
  ULAM_IN_STEP(add)
  ULAM_IN_STEP(sub)
  ULAM_IN_STEP(mul)
  ULAM_IN_STEP(div)
  ULAM_IN_STEP(fma)
  ULAM_IN_STEP(at_least)
  ULAM_IN_STEP(nan_or)
  ULAM_IN_STEP(clip)
  ULAM_IN_STEP(less)
  ULAM_IN_STEP(add_u)
  ULAM_IN_STEP(sub_u)
#undef ULAM_IN_STEP
  static inline u bits(f x) {
    return together_as<u>([](one a) { return V::bits(a); }, x);
  }
  static inline f as_float(u x) {
    return together_as<f>([](word a) { return V::as_float(a); }, x);
  }
  static inline f from_signed(u x) {
    return together_as<f>([](word a) { return V::from_signed(a); }, x);
  }
  static inline u and_(u a, uint32_t b) {
    return together([=](word x) { return V::and_(x, b); }, a);
  }
  template <int n>
  static inline u shl(u a) {
    return together([](word x) { return V::template shl<n>(x); }, a);
  }
};

}  // namespace
}  // namespace ulam::cpu
