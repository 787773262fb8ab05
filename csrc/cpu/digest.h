// A digest of arrays, by which a change of their bytes is seen without a copy of them. Part of kernels_impl.h.
#pragma once

#include <cstring>

#include "kernels.h"

namespace ulam::cpu {
namespace {

// Lane l takes the words x of its own, one of each step: s <- rotated(s xor x) P, t <- t + s. A step is a bijection of
// s for any x, and of x for any s, so that one changed word always shows; more of them in one lane must cancel in s and
// in the sum of all that s has been.
template <class V>
void digest_arrays(const uint64_t* addresses, const uint64_t* bytes, int64_t count, unsigned char* out) {
  constexpr int kWidth = V::width < 4 ? 4 : V::width, kApart = V::width < 16 ? 4 : 8;  // as there are registers
  static_assert(2 * 4 * kWidth * kApart <= kDigestBytes);
  typedef uint32_t Words __attribute__((vector_size(4 * kWidth)));
  Words s[kApart], t[kApart];
  for (int i = 0; i < kApart; ++i) s[i] = t[i] = Words{} + static_cast<uint32_t>(i + 1);
  const auto take = [&](const unsigned char* from) {
    ULAM_UNROLL
    for (int i = 0; i < kApart; ++i) {
      Words x;
      std::memcpy(&x, from + i * sizeof x, sizeof x);
      const Words w = s[i] ^ x;
      s[i] = (w << 16 | w >> 16) * 0x9E3779B1u;
      t[i] += s[i];
    }
  };
  for (int64_t a = 0; a < count; ++a) {
    const unsigned char* from = reinterpret_cast<const unsigned char*>(addresses[a]);
    uint64_t left = bytes[a];
    for (; left >= sizeof s; left -= sizeof s, from += sizeof s) take(from);
    unsigned char last[sizeof s] = {};
    if (left) take(static_cast<const unsigned char*>(std::memcpy(last, from, left)));
  }
  std::memcpy(out, s, sizeof s);
  std::memcpy(out + sizeof s, t, sizeof t);
}

}  // namespace
}  // namespace ulam::cpu
