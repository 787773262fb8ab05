// How the step sums the squares of its noise: see ulam/squares.h.
#pragma once

#include "lanes.h"
#include "ulam/squares.h"

namespace ulam::cuda {

using Whole = unsigned long long;

// The sum of the elements that a thread has of its chain.
class SquareSum {
 public:
  // z: from an element on of which `left` are in the chain.
  template <class Layout>
  ULAM_DEVICE void add(const typename Lanes<Layout::lanes>::f& z, uint32_t left) {
    uint32_t terms = 0;  // of at most 16 elements, each below 2^26
    ULAM_UNROLL
    for (int k = 0; k < Layout::lanes; ++k)
      if (k == 0 || Layout::element(k) < left) terms += square_term<Scalar>(z.x[k]);
    sum_ += terms;
  }
  // The same of noise that may be anything; total: the chain's.
  template <class Layout>
  ULAM_DEVICE void add_given(const typename Lanes<Layout::lanes>::f& z, uint32_t left, int64_t* total) {
    bool inside = true;
    ULAM_UNROLL
    for (int k = 0; k < Layout::lanes; ++k) {
      if (k > 0 && Layout::element(k) >= left) continue;
      const bool has_square = fabsf(z.x[k]) < kSquaresLimit;
      sum_ += has_square ? square_term<Scalar>(z.x[k]) : 0;
      inside = inside && has_square;
    }
    if (!inside) atomicOr(reinterpret_cast<Whole*>(total), static_cast<Whole>(kSquaresFailed));
  }

  // Adds the sum of a block that has one chain, of whole warps.
  ULAM_DEVICE void add_block(int64_t* total) const {
    const uint32_t low = __reduce_add_sync(0xffffffffu, static_cast<uint32_t>(sum_) & 0x3ffffffu);
    const uint32_t high = __reduce_add_sync(0xffffffffu, static_cast<uint32_t>(sum_ >> 26));
    if (threadIdx.x % 32 == 0) add_to(total, low + (static_cast<Whole>(high) << 26));
  }

  // The same of a block that has chains along y, of any number of threads: those of a chain are neighbours in a warp.
  // All threads call it.
  ULAM_DEVICE void add_chains(const Step& s, int64_t b) const {
    const uint32_t threads = blockDim.x * blockDim.y, thread = threadIdx.y * blockDim.x + threadIdx.x;
    const uint32_t lane = thread % 32, there = min(32u, threads - (thread - lane)), mask = 0xffffffffu >> (32 - there);
    const uint32_t behind = min(blockDim.x - 1 - threadIdx.x, 31 - lane);  // threads of this chain and warp
    Whole all = sum_;
#pragma unroll 1
    for (uint32_t step = 1; step < min(blockDim.x, 32u); step *= 2) {
      const Whole other = __shfl_down_sync(mask, all, step);
      if (step <= behind) all += other;
    }
    if (b < s.chains && (lane == 0 || threadIdx.x == 0)) add_to(s.squares + b, all);
  }

 private:
  static ULAM_DEVICE void add_to(int64_t* total, Whole sum) {
    if (sum) atomicAdd(reinterpret_cast<Whole*>(total), sum);
  }

  Whole sum_ = 0;
};

// What a step that records has in hand, and one that does not: nothing, so that it is compiled as if there were no
// sums.
struct Recorded {
  static constexpr bool records = true;
  SquareSum& squares;
};
struct Unrecorded {
  static constexpr bool records = false;
};

}  // namespace ulam::cuda
