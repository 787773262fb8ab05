// Reductions of chains that fit the registers of a warp or of a part of it: a group of threads has a chain, and holds
// the bits of |D| while an order statistic is found bit by bit, from the top, by counting.
#include "reduce_short.h"

#include "group.h"
#include "launch.h"
#include "reduce_chain.h"

namespace ulam::cuda {
namespace {

template <bool aligned, int quads>
using ShortChain = ReduceChain<aligned, kInFlightOf<aligned, quads>>;

// The numbers that a thread holds, kLargest beyond the chain.
template <int quads>
struct Held {
  uint32_t number[4 * quads];
  bool nan = false;

  template <bool aligned>
  ULAM_DEVICE Held(const ReduceChain<aligned, kInFlightOf<aligned, quads>>& chain, const LaneGroup& group) {
    constexpr int in_flight = kInFlightOf<aligned, quads>;
    ULAM_UNROLL
    for (int p = 0; p < quads / in_flight; ++p) {
      const Places at = group.places<quads, in_flight>(p, chain.elements);
      typename ShortChain<aligned, quads>::Raws raw;
      chain.load(at, raw);
      ULAM_UNROLL
      for (int k = 0; k < in_flight; ++k) {
        const uint4 v = chain.magnitudes(raw, at, k);
        const int first = 4 * (p * in_flight + k);
        number[first] = v.x, number[first + 1] = v.y, number[first + 2] = v.z, number[first + 3] = v.w;
      }
    }
    ULAM_UNROLL
    for (int i = 0; i < 4 * quads; ++i) {
      nan |= number[i] > kInfinityBits && number[i] != kBeyond;
      number[i] = min(number[i], kLargest);
    }
  }
  // How many are below a limit of up to kLargest + 1: the sign of the difference says it.
  ULAM_DEVICE uint32_t below(uint32_t limit) const {
    uint32_t count = 0;
    ULAM_UNROLL
    for (int i = 0; i < 4 * quads; ++i) count += (number[i] - limit) >> 31;
    return count;
  }
  ULAM_DEVICE uint32_t least_above(uint32_t limit) const {
    uint32_t least = kLargest;
    ULAM_UNROLL
    for (int i = 0; i < 4 * quads; ++i)
      if (number[i] > limit) least = min(least, number[i]);
    return least;
  }
};

template <int quads, bool aligned>
ULAM_DEVICE Scales threshold(const ShortChain<aligned, quads>& chain, const LaneGroup& group, int64_t elements,
                             float level, float cap) {
  const Rank rank = rank_of(level, elements);
  const uint32_t k = static_cast<uint32_t>(rank.k);
  const Held<quads> held(chain, group);
  uint32_t found = 0;  // the largest number with at most k below it
#pragma unroll 1
  for (uint32_t bit = 1u << 30; bit > 0; bit >>= 1)
    if (group.sum(held.below(found | bit)) <= k) found |= bit;
  const uint32_t upto = group.sum(held.below(found + 1));
  const uint32_t above = group.least(held.least_above(found));
  const bool repeated = k + 1 < upto || k + 1 == elements;
  if (group.sum(held.nan) > 0) return threshold_scales(not_a_number(), not_a_number(), 0.0f, cap);
  return threshold_scales(Scalar::as_float(found), Scalar::as_float(repeated ? found : above), rank.t, cap);
}

template <int quads, bool aligned, bool given>
ULAM_DEVICE Scales normalise(const ShortChain<aligned, quads>& chain, const LaneGroup& group) {
  double total[2];
  sum_in_group<quads>(Squares<aligned, given, kInFlightOf<aligned, quads>>{chain}, group, chain.elements, total);
  return normalising_scales(total[1], total[0]);
}

}  // namespace

// Groups of 2^shift threads, `quads` quads each. A thread whose chain does not take part in a step, or does not exist,
// has no elements in it.
template <int quads, bool aligned>
__global__ void __launch_bounds__(kGroupThreads)
    reduce_chains(const Reduce s, uint32_t missing, uint32_t width, uint32_t shift) {
  const LaneGroup group{shift};
  const bool exists = group.chain() < s.step.chains;
  const int64_t b = exists ? group.chain() : s.step.chains - 1;
  const Request row(s.step, b, missing);
  const auto elements = [&](bool takes_part) { return takes_part ? static_cast<uint32_t>(s.step.elements) : 0u; };
  ShortChain<aligned, quads> chain(s.step, b, row, width);
  Scales scales = row.usable ? no_scales() : nan_scales();
  const bool first = exists && row.threshold(), second = exists && row.normalise();
  if (LaneGroup::any(first)) {
    chain.elements = elements(first);
    const float level = first ? row.c[kLow] : 0.0f, cap = first ? row.c[kHigh] : 0.0f;
    const Scales found = threshold<quads, aligned>(chain, group, s.step.elements, level, cap);
    if (first) scales = found;
  }
  if (LaneGroup::any(second)) {
    chain.elements = elements(second);
    const Scales found =
        chain.given ? normalise<quads, aligned, true>(chain, group) : normalise<quads, aligned, false>(chain, group);
    if (second) scales = found;
  }
  if (exists && group.thread() == 0) store_scales(s, b, scales);
}

namespace {

template <bool aligned>
cudaError_t launch_short(const Reduce& r, uint32_t missing, uint32_t width, void* stream) {
  const GroupPlan plan = plan_groups(r.step.chains, r.step.elements, 4, 8);
  const auto kernel = plan.quads == 1   ? reduce_chains<1, aligned>
                      : plan.quads == 2 ? reduce_chains<2, aligned>
                      : plan.quads == 4 ? reduce_chains<4, aligned>
                                        : reduce_chains<8, aligned>;
  return launch(kernel, plan.blocks, stream, r, missing, width, plan.shift);
}

}  // namespace

cudaError_t reduce_short(const Reduce& r, uint32_t missing, uint32_t width, void* stream) {
  return width == 4 ? launch_short<true>(r, missing, width, stream) : launch_short<false>(r, missing, width, stream);
}

}  // namespace ulam::cuda
