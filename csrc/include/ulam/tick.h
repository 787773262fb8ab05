// Between the network and the fused step, once for host and device: whether numbers are finite, and how a chain goes on
// to its next row.
#pragma once

#include <cstdint>

#include "operations.h"
#include "platform.h"

namespace ulam {

// The lines of a cursor [6, B] and of a now [2, B].
enum CursorLine { kRow, kDraw, kRowAdvance, kDrawAdvance, kFailed, kParts };
constexpr int64_t kIdleRow = 0;

// Numbers are checked two words at a time, whatever their type: one that is not finite has an exponent of all ones,
// which carries into the top bit of ((word & mask) + step).
struct ExponentBits {
  uint32_t mask[2], step[2], top[2];  // of words at even places, and of words at odd ones
};

ULAM_HD ExponentBits exponent_bits(DType type) {
  if (type == kBFloat16) return {{0x7f807f80u, 0x7f807f80u}, {0x00800080u, 0x00800080u}, {0x80008000u, 0x80008000u}};
  if (type == kFloat16) return {{0x7c007c00u, 0x7c007c00u}, {0x04000400u, 0x04000400u}, {0x80008000u, 0x80008000u}};
  if (type == kFloat64) return {{0, 0x7ff00000u}, {0, 0x00100000u}, {0, 0x80000000u}};
  return {{0x7f800000u, 0x7f800000u}, {0x00800000u, 0x00800000u}, {0x80000000u, 0x80000000u}};
}

ULAM_HD int64_t bytes_of(DType type) { return type == kFloat64 ? 8 : type == kFloat32 ? 4 : 2; }

// Whether a chain must stop: guidance at weight w does not read the model's output at w == 0, nor uncond at w == 1.
ULAM_HD bool must_stop(bool model_fails, bool uncond_fails, float w) {
  return (model_fails && w != 0.0f) || (uncond_fails && w != 1.0f);
}

// The guidance of a chain at time t, given its interval.
template <class T>
ULAM_HD float weight_at(T t, float from, float to, float guidance) {
  return t >= from && t <= to ? guidance : 1.0f;
}

}  // namespace ulam
