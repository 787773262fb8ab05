// What happens between the network and the fused step, on one instruction set. Plain loops over integers, which the
// compiler makes vectors of. Part of kernels_impl.h.
#pragma once

#include <cstring>

#include "groups.h"
#include "ulam/tick.h"

namespace ulam::cpu {
namespace {

constexpr int64_t kTogether = 16384;  // elements of short chains that are checked at once

inline bool all_finite(const char* at, int64_t bytes, const ExponentBits& e) {
  typedef uint64_t Word __attribute__((aligned(1), may_alias));
  const auto both = [](const uint32_t half[2]) { return half[0] | static_cast<uint64_t>(half[1]) << 32; };
  const uint64_t mask = both(e.mask), step = both(e.step), top = both(e.top);
  const Word* const words = reinterpret_cast<const Word*>(at);
  const int64_t count = bytes / 8;
  uint64_t any = 0;
  for (int64_t i = 0; i < count; ++i) any |= (words[i] & mask) + step;
  uint64_t rest = 0;
  std::memcpy(&rest, words + count, static_cast<size_t>(bytes % 8));
  any |= (rest & mask) + step;
  return !(any & top);
}

struct Outputs {
  const Advance& s;
  const ExponentBits exponent;
  const int64_t size;

  explicit Outputs(const Advance& s) : s(s), exponent(exponent_bits(s.type)), size(bytes_of(s.type)) {}

  bool finite(const void* base, int64_t first, int64_t count) const {
    return all_finite(static_cast<const char*>(base) + first * size, count * size, exponent);
  }
  bool chain_fails(int64_t b, int64_t begin, int64_t end) const {
    if (s.cursor[kRow * s.chains + b] == kIdleRow) return false;
    const float w = s.uncond ? s.guidance[b] : 1.0f;
    if (w != 0.0f && !finite(s.model, b * s.model_stride + begin, end - begin)) return true;
    return w != 1.0f && !finite(s.uncond, b * s.uncond_stride + begin, end - begin);
  }
  // Whether a check of all these chains at once shows that every element is finite.
  bool chains_finite(int64_t first, int64_t count) const {
    const auto together = [&](const void* base, int64_t stride) {
      return stride == s.elements && finite(base, first * stride, count * stride);
    };
    return count > 1 && together(s.model, s.model_stride) && (!s.uncond || together(s.uncond, s.uncond_stride));
  }
};

// Sets bad[b] where chain b must stop; it is zero before. Threads may share a chain.
inline void find_bad_units(const Advance& s, int64_t chunk, int64_t begin, int64_t end, uint8_t* bad) {
  const Outputs outputs(s);
  const int64_t together = s.elements < kTogether ? kTogether / s.elements : 1;
  for (int64_t unit = begin, count; unit < end; unit += count) {
    const bool whole = s.elements <= chunk;
    count = !whole ? 1 : together < end - unit ? together : end - unit;
    if (whole && outputs.chains_finite(unit, count)) continue;
    for (int64_t k = unit; k < unit + count; ++k) {
      const Span span(k, s.elements, chunk);
      if (outputs.chain_fails(span.chain, span.begin, span.end))
        __atomic_store_n(bad + span.chain, 1, __ATOMIC_RELAXED);
    }
  }
}

// bad: null where nothing was checked.
inline void count_on_chains(const Advance& s, const uint8_t* bad, int64_t begin, int64_t end) {
  using Count = uint64_t;  // which wraps
  const auto line = [&](int64_t* base, int64_t k) { return reinterpret_cast<Count*>(base + k * s.chains); };
  Count* __restrict row = line(s.cursor, kRow), * __restrict draw = line(s.cursor, kDraw);
  Count* __restrict row_now = line(s.now, kRow), * __restrict draw_now = line(s.now, kDraw);
  Count* __restrict row_advance = line(s.cursor, kRowAdvance), * __restrict draw_advance = line(s.cursor, kDrawAdvance);
  Count* __restrict failed = line(s.cursor, kFailed);
  if (bad && std::memchr(bad + begin, 1, static_cast<size_t>(end - begin))) {
    for (int64_t b = begin; b < end; ++b) {
      const bool stops = bad[b] && row[b] != kIdleRow;
      failed[b] = stops ? row[b] : failed[b];
      row_advance[b] = stops ? 0 : row_advance[b];
      draw_advance[b] = stops ? 0 : draw_advance[b];
      row[b] = stops ? kIdleRow : row[b];
    }
  }
  for (int64_t b = begin; b < end; ++b) {
    row_now[b] = row[b];
    draw_now[b] = draw[b];
    row[b] += row_advance[b];
    draw[b] += draw_advance[b];
  }
}

// The first of these chains whose row is outside the table; `end` where there is none.
inline int64_t first_outside(const int64_t* row, int64_t rows, int64_t begin, int64_t end) {
  const auto outside = [&](int64_t b) { return static_cast<uint64_t>(row[b]) >= static_cast<uint64_t>(rows); };
  uint64_t any = 0;
  for (int64_t b = begin; b < end; ++b) any |= outside(b);
  if (!any) return end;
  while (!outside(begin)) ++begin;
  return begin;
}

template <class T>
inline void look_up_times(const LookUp& s, int64_t begin, int64_t end) {
  const T* const times = static_cast<const T*>(s.times);
  T* const out = static_cast<T*>(s.out);
  for (int64_t b = begin; b < end; ++b) out[b] = times[s.row[b]];
  if (!s.weight) return;
  const float *const from = s.interval, *const to = from + s.chains;
  for (int64_t b = begin; b < end; ++b)
    s.weight[b] = weight_at(static_cast<float>(out[b]), from[b], to[b], s.guidance[b]);
}

inline void look_up_chains(const LookUp& s, int64_t begin, int64_t end) {
  s.whole ? look_up_times<int64_t>(s, begin, end) : look_up_times<float>(s, begin, end);
}

}  // namespace
}  // namespace ulam::cpu
