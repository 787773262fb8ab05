// How an operation's elements are shared among blocks, and the message when a launch fails.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <initializer_list>

#include "group.h"
#include "lanes.h"

namespace ulam::cuda {

constexpr int kThreads = 64, kShortThreads = 128;

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

// Elements a thread of a step takes at once: eight of several wide registers would keep too few threads in flight.
constexpr int step_lanes(int state_bytes, int registers) { return state_bytes == 4 && registers >= 2 ? 4 : 8; }

// One chain a block, Vectors of elements a thread.
inline Plan plan_vectors(int64_t chains, int64_t elements, int lanes = Vectors<4>::lanes) {
  const int64_t warp = 32 * lanes, warps = (elements + warp - 1) / warp;
  const unsigned threads = static_cast<unsigned>(std::min<int64_t>(warps * 32, kThreads));
  return plan(chains, elements, dim3(threads), threads * lanes);
}

// As many chains a block as fit, Groups of elements a thread. `offset` is how far the first element is into its group.
inline Plan plan_groups(int64_t chains, int64_t elements, int64_t offset, int lanes, int threads) {
  const int64_t groups = (offset + elements + lanes - 1) / lanes;
  const unsigned across = static_cast<unsigned>(std::min<int64_t>(std::max<int64_t>(groups, 1), threads));
  const unsigned down = static_cast<unsigned>(std::min<int64_t>(threads / across, std::max<int64_t>(chains, 1)));
  return plan(chains, offset + elements, dim3(across, down), across * lanes);
}
inline Plan plan_quads(int64_t chains, int64_t elements, int64_t offset = 0) {
  return plan_groups(chains, elements, offset, 4, kThreads);
}

// Whether a block takes all its elements at once, so that no thread has a second group.
inline bool in_one_pass(const Plan& plan, int lanes) { return plan.span <= plan.threads.x * lanes; }

// Many short chains in blocks of more threads, of which there are fewer to begin.
inline Plan plan_short(int64_t chains, int64_t elements, int lanes) {
  const Plan few = plan_groups(chains, elements, 0, lanes, kThreads);
  return few.grid.x > 4096 && few.threads.y > 1 ? plan_groups(chains, elements, 0, lanes, kShortThreads) : few;
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

// The same of float32 operands.
inline uint32_t access_width(int64_t elements, std::initializer_list<const float*> operands) {
  uint32_t width = 4;
  for (const float* p : operands) width = std::min(width, access_width(elements, {Operand{p, kFloat32}}));
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

// How blocks that reduce a chain are launched: one a chain, or a cluster of `blocks`.
struct ChainPlan {
  dim3 grid, threads;
  unsigned blocks;
  size_t bytes;  // of dynamic shared memory
};

// Chains for which a cluster each fills more of the device than a block each, and long enough to pay for its barriers.
inline bool few_and_long(int64_t chains, int64_t elements) { return chains <= 64 && elements >= 16384; }

inline ChainPlan plan_blocks(int64_t chains, unsigned blocks, unsigned threads, size_t bytes = 0) {
  const int64_t all = std::min<int64_t>(chains, UINT32_MAX) * blocks;  // more than a grid can have are refused
  return {dim3(static_cast<unsigned>(std::min<int64_t>(all, UINT32_MAX))), dim3(threads), blocks, bytes};
}

// Threads of a block that has a chain to itself, four elements each at a time.
inline unsigned threads_alone(int64_t elements, unsigned most) {
  unsigned threads = 32;
  while (threads < most && 4 * threads < elements) threads *= 2;
  return threads;
}

// How short chains are shared: `quads` of each thread, 2^shift threads of a warp a chain, many of them a block.
struct GroupPlan {
  ChainPlan blocks;
  int quads;
  uint32_t shift;
};

// Up to `wanted` quads a thread, two before four, rather than more threads: where what these do together costs each of
// them the same. More, `most` at the most, where a warp has not enough threads.
inline GroupPlan plan_groups(int64_t chains, int64_t elements, int wanted, int most) {
  int quads = 1;
  while (quads < wanted && 4 * quads * quads < elements) quads *= 2;
  uint32_t shift = 0;
  while (shift < 5 && (int64_t{4} * quads << shift) < elements) ++shift;
  while (quads < most && (int64_t{4} * quads << shift) < elements) quads *= 2;
  const int64_t all = std::min<int64_t>(chains, int64_t{UINT32_MAX} << 5) << shift;
  return {plan_blocks((all + kGroupThreads - 1) / kGroupThreads, 1, kGroupThreads), quads, shift};
}

// Lets a kernel use all the dynamic shared memory that a block can have beside its static one on the current device:
// `bytes`. Always all of it, so that threads launching at the same time do not undo one another's setting.
template <class... Parameters>
cudaError_t open_shared_memory(void (*kernel)(Parameters...), size_t* bytes) {
  int device = 0, most = 0;
  cudaFuncAttributes own = {};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&own, kernel);
  if (error != cudaSuccess) return error;
  *bytes = static_cast<size_t>(most) - own.sharedSizeBytes;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(*bytes));
}

// A launch's configuration; it points to `cluster`.
inline cudaLaunchConfig_t configuration(const ChainPlan& plan, void* stream, cudaLaunchAttribute* cluster) {
  cudaLaunchConfig_t config = {};
  config.gridDim = plan.grid;
  config.blockDim = plan.threads;
  config.dynamicSmemBytes = plan.bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  if (plan.blocks > 1) {
    *cluster = {};
    cluster->id = cudaLaunchAttributeClusterDimension;
    cluster->val.clusterDim = {plan.blocks, 1, 1};
    config.attrs = cluster;
    config.numAttrs = 1;
  }
  return config;
}

// Whether the current device can run clusters at all, and this kernel was compiled for one that can.
template <class... Parameters>
cudaError_t has_clusters(void (*kernel)(Parameters...), bool* has) {
  int device = 0, clusters = 0;
  cudaFuncAttributes own = {};
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&clusters, cudaDevAttrClusterLaunch, device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&own, kernel);
  *has = error == cudaSuccess && clusters && own.ptxVersion >= 90;
  return error;
}

// Whether a cluster of this plan fits the device, or the part of it that there is.
template <class... Parameters>
cudaError_t cluster_fits(void (*kernel)(Parameters...), const ChainPlan& plan, bool* fits) {
  cudaLaunchAttribute cluster;
  const cudaLaunchConfig_t config = configuration(plan, nullptr, &cluster);
  int active = 0;
  const cudaError_t error = cudaOccupancyMaxActiveClusters(&active, kernel, &config);
  *fits = error == cudaSuccess && active > 0;
  return error;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const ChainPlan& plan, void* stream, Arguments... arguments) {
  cudaLaunchAttribute cluster;
  const cudaLaunchConfig_t config = configuration(plan, stream, &cluster);
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace ulam::cuda
