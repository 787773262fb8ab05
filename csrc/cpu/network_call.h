// One call of a network at the states of many chains, and the memory that a thread evaluates it in. Part of
// kernels_impl.h.
#pragma once

#include <cstdlib>
#include <new>

#include "network_columns.h"

namespace ulam::cpu {
namespace {

// Floats from the start of a cache line on, which a thread keeps for the next call.
struct Scratch {
  float* floats = nullptr;
  size_t count = 0;

  ~Scratch() { std::free(floats); }
  float* of(size_t wanted) {
    if (count < wanted) {
      std::free(floats);
      floats = static_cast<float*>(std::aligned_alloc(64, (wanted * sizeof(float) + 63) / 64 * 64));
      count = floats ? wanted : 0;
      if (!floats) throw std::bad_alloc();
      std::memset(floats, 0, wanted * sizeof(float));
    }
    return floats;
  }
};

inline float* scratch_of(size_t count) {
  thread_local Scratch scratch;
  return scratch.of(count);
}

// The chains [begin, begin + count), a lane a chain; lanes without a chain have the first one's state.
template <class V, int M>
void call_lanes(const Plan& plan, const NetworkCall& s, int64_t begin, int count) {
  constexpr int L = M * V::width;
  float* const slots = scratch_of((plan.room() * static_cast<size_t>(plan.max_width) + plan.chain_width) * L);
  float* const vectors = slots + static_cast<int64_t>(plan.room()) * plan.max_width * L;
  LanesNetwork<V, M> network(plan, slots);
  const auto side_by_side = [&](const float* from, int64_t width, float* to) {
    for (int c = 0; c < L; ++c) {
      const float* const own = from + (begin + (c < count ? c : 0)) * width;
      for (int64_t i = 0; i < width; ++i) to[i * L + c] = own[i];
    }
  };
  side_by_side(s.x, plan.inputs, network.value(0));
  if (s.chain_vectors) side_by_side(s.chain_vectors, plan.chain_width, vectors);
  const float* const out = network.evaluate(s.row_vector, false, vectors);
  for (int c = 0; c < count; ++c) {
    float* const own = s.out + (begin + c) * plan.outputs;
    for (int i = 0; i < plan.outputs; ++i) own[i] = out[i * L + c];
    if (s.energy) s.energy[begin + c] = network.value(plan.energy)[c];
  }
}

// A few chains, a lane a column.
template <class V, int C>
void call_columns(const Plan& plan, const NetworkCall& s, int64_t begin, int count) {
  constexpr int kVectors = (V::width >= 16 ? 16 : 8) / C;
  ColumnsNetwork<V, C, kVectors> network(plan, scratch_of(plan.room() * size_t{kColumns} * C));
  const float *rows[C], *chains[C];
  for (int c = 0; c < C; ++c) {
    const int64_t from = begin + (c < count ? c : 0);
    rows[c] = s.row_vector;
    chains[c] = s.chain_vectors + from * plan.chain_width;
    std::memcpy(network.value(0) + c * kColumns, s.x + from * plan.inputs, sizeof(float) * plan.inputs);
  }
  const float* const out = network.evaluate(rows, chains);
  for (int c = 0; c < count; ++c) {
    std::memcpy(s.out + (begin + c) * plan.outputs, out + c * kColumns, sizeof(float) * plan.outputs);
    if (s.energy) s.energy[begin + c] = network.value(plan.energy)[c * kColumns];
  }
}

template <class V>
void call_network(const NetworkCall& s, int64_t begin, int64_t end) {
  constexpr int W = V::width;
  const Plan plan(s.code, s.data, s.packed, kPanel<V>);
  for (int64_t at = begin; at < end; at += 2 * W) {
    const int count = static_cast<int>(end - at < 2 * W ? end - at : 2 * W);
    if (W > 1 && count == 1)
      call_columns<V, 1>(plan, s, at, count);
    else if (W > 1 && count == 2)
      call_columns<V, 2>(plan, s, at, count);
    else if (W > 1 && count <= 4)
      call_columns<V, 4>(plan, s, at, count);
    else if (W >= 16 && count <= 8)
      call_columns<V, W >= 16 ? 8 : 4>(plan, s, at, count);
    else if (count <= W)
      call_lanes<V, 1>(plan, s, at, count);
    else
      call_lanes<V, 2>(plan, s, at, count);
  }
}

}  // namespace
}  // namespace ulam::cpu
