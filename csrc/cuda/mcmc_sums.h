// Sums over a chain whose elements lie in its threads' registers, four neighbours a thread, in the order of kLanes.
#pragma once

#include "lanes.h"

namespace ulam::cuda {

ULAM_DEVICE float sum2(float a, float b) { return __fadd_rn(a, b); }
ULAM_DEVICE double sum2(double a, double b) { return a + b; }

// The sum over the quads of `threads` neighbouring threads of a warp, a power of two, in every one of them. All threads
// of the warp call it.
template <class T>
ULAM_DEVICE T sum_of_quads(const T v[4], int threads) {
  T sum[4] = {v[0], v[1], v[2], v[3]};
  for (int w = threads / 2; w > 0; w /= 2) {
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) sum[k] = sum2(sum[k], __shfl_xor_sync(0xffffffffu, sum[k], w));
  }
  return sum2(sum2(sum[0], sum[2]), sum2(sum[1], sum[3]));
}

}  // namespace ulam::cuda
