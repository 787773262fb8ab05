// The reductions of short chains, many of which share a block: what reduce.cu asks of reduce_short.cu.
#pragma once

#include <cuda_runtime.h>

#include "ulam/operations.h"

namespace ulam::cuda {

constexpr int64_t kLongestShort = 1024;  // a warp has such a chain in 32 registers a thread

// `missing`: what rows may read and is not given; `width`: elements that one access of any operand may take.
cudaError_t reduce_short(const Reduce&, uint32_t missing, uint32_t width, void* stream);

}  // namespace ulam::cuda
