// bf16 and fp16 to fp32 (exact) and back (round to nearest even), one value at a time and in integers only.
#pragma once

#include <cstdint>

#include "ulam/scalar.h"

namespace ulam::cpu {

ULAM_HD float from_bfloat16(uint16_t h) { return Scalar::as_float(static_cast<uint32_t>(h) << 16); }

ULAM_HD uint16_t to_bfloat16(float x) {
  const uint32_t i = Scalar::bits(x);
  if ((i & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
  return static_cast<uint16_t>((i + 0x7fffu + (i >> 16 & 1u)) >> 16);
}

ULAM_HD float from_float16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, exponent = h >> 10 & 0x1fu, mantissa = h & 0x3ffu;
  if (exponent == 0x1f) return Scalar::as_float(sign | 0x7f800000u | (mantissa ? 0x400000u | mantissa << 13 : 0));
  if (exponent != 0) return Scalar::as_float(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

ULAM_HD uint16_t to_float16(float x) {
  const uint32_t i = Scalar::bits(x), sign = i >> 16 & 0x8000u, magnitude = i & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x1ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude >= 0x38800000u)                                                // normal
    return static_cast<uint16_t>(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
  // Subnormal: adding 0.5 leaves the mantissa, rounded to nearest even, in the low bits.
  const uint32_t rounded = Scalar::bits(Scalar::as_float(magnitude) + 0.5f) - 0x3f000000u;
  return static_cast<uint16_t>(sign | rounded);
}

}  // namespace ulam::cpu
