// How an operation's elements are shared among blocks, and what is told when a launch fails. Plain functions of the
// sizes: nothing here asks the device.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <initializer_list>

#include "lanes.h"

namespace ulam::cuda {

constexpr int kThreads = 64;

// Blocks of `threads` (elements of a chain along x, chains along y), on a grid of (groups of chains, parts of a
// chain); each block takes `span` elements of its chains.
struct Plan {
  dim3 grid, threads;
  uint32_t span;
};

// A part holds at least `pass` elements, what a block takes at once, and more of them where there are blocks enough:
// a block's first work is to read and derive what its chain needs.
inline Plan plan(int64_t chains, int64_t elements, dim3 threads, int64_t pass) {
  constexpr int64_t kEnoughBlocks = 4096, kMostPasses = 16, kMostParts = 65535;
  const int64_t groups = (chains + threads.y - 1) / threads.y, passes = (elements + pass - 1) / pass;
  int64_t each = std::min((groups * passes + kEnoughBlocks - 1) / kEnoughBlocks, kMostPasses);
  each = std::max(each, (passes + kMostParts - 1) / kMostParts);
  const int64_t parts = (passes + each - 1) / each;
  each = (passes + parts - 1) / parts;
  const uint32_t span = static_cast<uint32_t>(std::min<int64_t>(each * pass, 1 << 30));
  // More groups than a grid can have are left for the launch to refuse.
  const unsigned across = static_cast<unsigned>(std::min<int64_t>(groups, UINT32_MAX));
  return {dim3(across, static_cast<unsigned>(parts)), threads, span};
}

// One chain a block, Vectors of elements a thread.
inline Plan plan_vectors(int64_t chains, int64_t elements) {
  const int64_t warp = Vectors<4>::warp_elements, warps = (elements + warp - 1) / warp;
  const unsigned threads = static_cast<unsigned>(std::min<int64_t>(warps * 32, kThreads));
  return plan(chains, elements, dim3(threads), threads * Vectors<4>::lanes);
}

// As many chains a block as fit, Quads of elements a thread. `offset` is how far the first element is into its quad.
inline Plan plan_quads(int64_t chains, int64_t elements, int64_t offset = 0) {
  const int64_t quads = (offset + elements + 3) / 4;
  const unsigned across = static_cast<unsigned>(std::min<int64_t>(std::max<int64_t>(quads, 1), kThreads));
  const unsigned down = static_cast<unsigned>(std::min<int64_t>(kThreads / across, std::max<int64_t>(chains, 1)));
  return plan(chains, offset + elements, dim3(across, down), across * 4);
}

struct Operand {
  const void* address;
  DType type;
  int64_t stride = 0;  // from chain to chain, where it is not the number of elements

  int64_t bytes() const { return type == kFloat32 ? 4 : 2; }
};

// The most elements (4, 2 or 1) that one access of every operand may take, at the start of any chain.
inline uint32_t access_width(int64_t elements, std::initializer_list<Operand> operands) {
  uint32_t width = 4;
  for (const Operand& o : operands) {
    if (!o.address) continue;
    const int64_t stride = o.stride ? o.stride : elements;
    while (width > 1 && (reinterpret_cast<uintptr_t>(o.address) % (width * o.bytes()) || stride % width)) width /= 2;
  }
  return width;
}

// Whether each chain of every operand starts at a multiple of 16 bytes and holds whole vectors of `run` elements.
inline bool vectors_fit(int64_t elements, int run, std::initializer_list<Operand> operands) {
  if (elements < Vectors<4>::warp_elements || elements % run) return false;
  for (const Operand& o : operands) {
    const int64_t stride = o.stride ? o.stride : elements;
    if (o.address && (reinterpret_cast<uintptr_t>(o.address) % 16 || stride % run)) return false;
  }
  return true;
}

// What went wrong in a launch, as text that lives until this thread's next failure.
template <class... Arguments>
const char* failure(cudaError_t error, const char* format, Arguments... arguments) {
  static thread_local char text[512];
  const int written = std::snprintf(text, sizeof text, format, arguments...);
  std::snprintf(text + written, sizeof text - written, ": %s", cudaGetErrorString(error));
  return text;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Plan& plan, void* stream, Arguments... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = plan.grid;
  config.blockDim = plan.threads;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace ulam::cuda
