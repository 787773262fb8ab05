// The normals of torch's CPU generator: the bits of `Tensor.normal_` on contiguous float32, at least 16 of them.
//
// torch fills with mt19937's words, 24 bits of each a uniform number, and makes of every 16 of them eight Box-Muller
// pairs (j, j + 8); where the size is no multiple of 16, the last 16 values are made anew from 16 further words.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace ulam::cpu {

// What torch.Generator.get_state gives for a CPU generator. Of the block in `state`, the words from state[next] on are
// still to be drawn, left - 1 of them; a generator that was only seeded has left = 1 and next = 0.
struct TorchState {
  uint64_t seed;
  int32_t left, seeded;
  uint64_t next;
  uint64_t state[624];
  double normal_x, normal_y, normal_rho;
  int32_t normal_is_valid;
  alignas(8) float next_float;
  bool next_float_is_valid;
};
static_assert(sizeof(TorchState) == 5056);

// Fills out[0 .. count) and leaves the state as torch leaves it. False, and nothing is touched, if count < 16, if the
// state is not as described above, and with portable kernels: torch's bits are those of fused multiply-adds.
bool torch_normal(const Kernels&, float* out, int64_t count, TorchState& state, int64_t state_bytes, int threads);

}  // namespace ulam::cpu
