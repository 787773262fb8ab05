// Sums over two tensors of a chain, over one instruction set's lanes. Part of kernels_impl.h.
#pragma once

#include "reduce.h"
#include "ulam/operations.h"

namespace ulam::cpu {
namespace {

template <class V>
void moments_units(const Moments& s, int64_t, int64_t begin, int64_t end) {
  int width = 1;
  while (width < kLanes && width < s.elements) width *= 2;
  for (int64_t b = begin; b < end; ++b) {
    alignas(64) double lanes[Moments::sums][kLanes];
    for (auto& sum : lanes)
      for (int l = 0; l < width; ++l) sum[l] = 0.0;
    for (int64_t first = 0; first < s.elements; first += kLanes) {
      const float* const x = s.x + b * s.elements + first;
      const float* const y = s.y + b * s.elements + first;
      const int64_t here = s.elements - first < kLanes ? s.elements - first : kLanes;
      for (int64_t l = 0; l < here; ++l) {
        const double p = x[l], q = y[l];
        lanes[0][l] += p;
        lanes[1][l] += q;
        lanes[2][l] += p * p;
        lanes[3][l] += p * q;
        lanes[4][l] += q * q;
      }
    }
    for (int k = 0; k < Moments::sums; ++k) s.out[b * Moments::sums + k] = sum_lanes(lanes[k], width);
  }
}

}  // namespace
}  // namespace ulam::cpu
