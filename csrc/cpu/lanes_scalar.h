// The portable path: one lane, any machine.
#pragma once

#include <cmath>

#include "half.h"
#include "kernels.h"
#include "ulam/noise.h"

namespace ulam::cpu {
namespace {

struct Portable : Scalar {
  static constexpr int vectors = 4;
  static inline void words(const Stream& s, uint32_t block, u w[4]) { philox_words<Scalar>(s, s.tag | block, w); }
  static inline void interleave(f[4]) {}
  // Whether a is greater as a signed number.
  static inline uint32_t above(u a, uint32_t b) { return static_cast<int32_t>(a) > static_cast<int32_t>(b); }
  static inline f load(const void* p, DType type, int64_t i) {
    switch (type) {
      case kFloat32:
        return static_cast<const float*>(p)[i];
      case kBFloat16:
        return from_bfloat16(static_cast<const uint16_t*>(p)[i]);
      default:
        return from_float16(static_cast<const uint16_t*>(p)[i]);
    }
  }
  // Stores, and returns the value that was stored.
  static inline f store(void* p, DType type, int64_t i, f x) {
    switch (type) {
      case kFloat32:
        static_cast<float*>(p)[i] = x;
        return x;
      case kBFloat16:
        return from_bfloat16(static_cast<uint16_t*>(p)[i] = to_bfloat16(x));
      default:
        return from_float16(static_cast<uint16_t*>(p)[i] = to_float16(x));
    }
  }

  static inline f add(f a, f b) { return a + b; }
  static inline f div(f a, f b) { return a / b; }
  static inline f root(f a) { return std::sqrt(a); }
  static inline f less(f a, f b, f then, f otherwise) { return a < b ? then : otherwise; }
  static inline bool any(f a) { return a != 0.0f; }
  static inline f load(const float* p) { return *p; }
  using whole = uint64_t;
  static inline whole add_lanes(whole sum, u x) { return sum + x; }
  static inline void accumulate(double* lanes, f x) { lanes[0] += x; }
};

}  // namespace
}  // namespace ulam::cpu
