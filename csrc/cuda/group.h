// Threads of a warp that share a short chain, and sums over it in the fixed order.
#pragma once

#include "team.h"

namespace ulam::cuda {

constexpr unsigned kGroupThreads = 128;  // of a block

// Numbers up to n, a power of two, in the order in which halves are added: 0, n / 2, n / 4, 3 n / 4, ...
template <int n>
ULAM_HD constexpr int in_order(int number) {
  int place = 0;
  for (int bit = 1; bit < n; bit *= 2) place = 2 * place + (number / bit) % 2;
  return place;
}

// 2^shift threads side by side. All threads of a warp call what exchanges numbers, whatever their chains ask for.
struct LaneGroup {
  static constexpr uint32_t whole = 0xffffffffu;
  uint32_t shift;

  ULAM_DEVICE uint32_t threads() const { return 1u << shift; }
  ULAM_DEVICE uint32_t thread() const { return threadIdx.x & (threads() - 1); }
  ULAM_DEVICE int64_t chain() const { return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) >> shift; }

  // Of a thread's `quads`, the part of `in_flight` that is number `part` in the order in which they are added.
  template <int quads, int in_flight>
  ULAM_DEVICE Places places(int part, uint32_t elements) const {
    constexpr int parts = quads / in_flight;
    const uint32_t apart = 4 * threads();
    return {4 * thread() + in_order<parts>(part) * apart, parts * apart, elements};
  }

  static ULAM_DEVICE bool any(bool asked) { return __ballot_sync(whole, asked) != 0; }
  // What the group's numbers give together, in all of its threads: halves are combined, so of float64 it is a fixed
  // order.
  template <class T, class Combine>
  ULAM_DEVICE T together(T v, const Combine& combine) const {
    for (uint32_t step = threads() / 2; step > 0; step /= 2) v = combine(v, __shfl_xor_sync(whole, v, step));
    return v;
  }
  ULAM_DEVICE uint32_t sum(uint32_t v) const {
    if (shift == 5) return __reduce_add_sync(whole, v);
    return together(v, [](uint32_t a, uint32_t b) { return a + b; });
  }
  ULAM_DEVICE uint32_t least(uint32_t v) const {
    if (shift == 5) return __reduce_min_sync(whole, v);
    return together(v, [](uint32_t a, uint32_t b) { return min(a, b); });
  }
};

// sum_alone() of team.h for a group and up to kLanes elements: each lane of the sums has one at most, so halves are all
// that is added. +0 stands for the others: no sum is -0, so adding it changes none.
template <int quads, class Terms>
ULAM_DEVICE void sum_in_group(const Terms& terms, const LaneGroup& group, uint32_t elements, double* total) {
  constexpr int sums = Terms::sums, in_flight = Terms::in_flight;
  double part[4][sums][4];  // part[h]: the sum of 2^h quads, until as many more are added
  ULAM_UNROLL
  for (int p = 0; p < quads / in_flight; ++p) {
    const Places at = group.places<quads, in_flight>(p, elements);
    typename Terms::Loaded loaded;
    terms.load(at, loaded);
    ULAM_UNROLL
    for (int i = 0; i < in_flight; ++i) {
      const int k = in_order<in_flight>(i), number = p * in_flight + i;
      double own[sums][4] = {};
      if (at.inside(k)) {
        float t[sums][4];
        terms.terms(loaded, at, k, t);
        ULAM_UNROLL
        for (int j = 0; j < 4; ++j) {
          if (j >= at.left(k)) continue;
          ULAM_UNROLL
          for (int s = 0; s < sums; ++s) own[s][j] = Terms::add(0.0, t[s][j]);
        }
      }
      int h = 0;
      ULAM_UNROLL
      for (; number >> h & 1; ++h) {
        ULAM_UNROLL
        for (int s = 0; s < sums; ++s) ULAM_UNROLL
        for (int j = 0; j < 4; ++j) own[s][j] = part[h][s][j] + own[s][j];
      }
      ULAM_UNROLL
      for (int s = 0; s < sums; ++s) ULAM_UNROLL
      for (int j = 0; j < 4; ++j) part[h][s][j] = own[s][j];
    }
  }
  constexpr int all = quads == 8 ? 3 : quads == 4 ? 2 : quads == 2 ? 1 : 0;
  ULAM_UNROLL
  for (int s = 0; s < sums; ++s) {
    double lane[4];
    ULAM_UNROLL
    for (int j = 0; j < 4; ++j) lane[j] = group.together(part[all][s][j], [](double a, double b) { return a + b; });
    total[s] = (lane[0] + lane[2]) + (lane[1] + lane[3]);
  }
}

}  // namespace ulam::cuda
