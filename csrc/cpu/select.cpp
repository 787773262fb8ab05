#include "select.h"

#include <algorithm>
#include <cmath>

namespace ulam::cpu {

void select(uint32_t* numbers, int64_t n, int64_t k, uint32_t found[2]) {
  std::nth_element(numbers, numbers + k, numbers + n);
  found[0] = numbers[k];
  found[1] = k + 1 < n ? *std::min_element(numbers + k + 1, numbers + n) : numbers[k];
}

Bracket bracket_of(const uint32_t* numbers, int64_t n, int64_t k) {
  constexpr int64_t kSample = 512;
  uint32_t sample[kSample];
  for (int64_t i = 0; i < kSample; ++i) sample[i] = numbers[i * n / kSample];
  // The sample's rank of statistic k is about normal: three deviations either way.
  const double fraction = static_cast<double>(k) / static_cast<double>(n), rank = fraction * kSample;
  const double margin = 3.0 * std::sqrt(rank * (1.0 - fraction)) + 3.0;
  const int64_t first = static_cast<int64_t>(rank - margin), last = static_cast<int64_t>(rank + margin) + 1;
  Bracket bracket{0, 0x7fffffffu};
  uint32_t* rest = sample;
  if (first > 0) {
    std::nth_element(sample, sample + first, sample + kSample);
    bracket.low = sample[first];
    rest = sample + first;
  }
  if (last < kSample) {
    std::nth_element(rest, sample + last, sample + kSample);
    bracket.high = sample[last];
  }
  return bracket;
}

}  // namespace ulam::cpu
