// One lane: the arithmetic of a single element, on the host and on the device.
//
// The formulas of this folder are templates over such a type. The CPU's vector types (csrc/cpu/) have the
// same members over many lanes. Every operation rounds once, to nearest even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "ulam/platform.h"

namespace ulam {

struct Scalar {
  static constexpr int width = 1;
  using f = float;
  using u = uint32_t;
  using word = uint32_t;  // one counter word of Philox
  using wide = uint64_t;  // its product

  static ULAM_HD wide mul_wide(uint32_t a, word b) { return static_cast<uint64_t>(a) * b; }
  static ULAM_HD word hi(wide p) { return static_cast<uint32_t>(p >> 32); }
  static ULAM_HD word lo(wide p) { return static_cast<uint32_t>(p); }
  static ULAM_HD word word_of(uint32_t x) { return x; }
  static ULAM_HD word xor2(word a, uint32_t b) { return a ^ b; }
  static ULAM_HD word xor3(word a, word b, uint32_t c) { return a ^ b ^ c; }

  static ULAM_HD f set(float x) { return x; }
  static ULAM_HD u set_u(uint32_t x) { return x; }
#if defined(__CUDA_ARCH__)
  static ULAM_HD f fma(f a, f b, f c) { return __fmaf_rn(a, b, c); }
  static ULAM_HD f mul(f a, f b) { return __fmul_rn(a, b); }
  static ULAM_HD f sub(f a, f b) { return __fsub_rn(a, b); }
  // Correctly rounded on [2^-23, 46), the range of noise-v1's radius, from any reciprocal root within 2^-21:
  // proved over all pairs of mantissa and estimate (section 8 of the standard). sqrt.rn takes more
  // instructions and a branch.
  static ULAM_HD f sqrt(f a) {
    f y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(a));
    f g = mul(a, y), h = mul(0.5f, y);
    const f r = fma(-h, g, 0.5f);
    g = fma(g, r, g);
    h = fma(h, r, h);
    return fma(fma(-g, g, a), h, g);
  }
  static ULAM_HD f from_unsigned(u x) { return __uint2float_rn(x); }
  static ULAM_HD f from_signed(u x) { return __int2float_rn(static_cast<int32_t>(x)); }
  static ULAM_HD u rounded(f x) { return static_cast<uint32_t>(__float2int_rn(x)); }
  static ULAM_HD u bits(f x) { return __float_as_uint(x); }
  static ULAM_HD f as_float(u x) { return __uint_as_float(x); }
#else
  static ULAM_HD f fma(f a, f b, f c) { return __builtin_fmaf(a, b, c); }
  static ULAM_HD f mul(f a, f b) { return a * b; }
  static ULAM_HD f sub(f a, f b) { return a - b; }
  static ULAM_HD f sqrt(f a) { return __builtin_sqrtf(a); }
  static ULAM_HD f from_unsigned(u x) { return static_cast<float>(x); }
  static ULAM_HD f from_signed(u x) { return static_cast<float>(static_cast<int32_t>(x)); }
  static ULAM_HD u rounded(f x) { return static_cast<uint32_t>(static_cast<int32_t>(__builtin_lrintf(x))); }
  static ULAM_HD u bits(f x) {
    u y;
    std::memcpy(&y, &x, 4);
    return y;
  }
  static ULAM_HD f as_float(u x) {
    f y;
    std::memcpy(&y, &x, 4);
    return y;
  }
#endif
  static ULAM_HD u and_(u a, uint32_t b) { return a & b; }
  static ULAM_HD u xor_(u a, u b) { return a ^ b; }
  static ULAM_HD u sub_u(u a, u b) { return a - b; }
  static ULAM_HD u add_u(u a, u b) { return a + b; }
  template <int n>
  static ULAM_HD u shl(u a) {
    return a << n;
  }
  template <int n>
  static ULAM_HD u shr(u a) {
    return a >> n;
  }
  // x < lo ? lo : (x > hi ? hi : x), so NaN passes.
  static ULAM_HD f clip(f x, f lo, f hi) { return x < lo ? lo : (x > hi ? hi : x); }
  static ULAM_HD f at_least(f x, f lo) { return x < lo ? lo : x; }  // NaN passes
  static ULAM_HD f where_equal(f x, float y, f then, f otherwise) { return x == y ? then : otherwise; }
  static ULAM_HD f nan_or(f x, f y) { return x != x ? x : y; }
};

}  // namespace ulam
