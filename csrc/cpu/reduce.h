// Per-chain reductions over one instruction set's lanes. Part of kernels_impl.h.
#pragma once

#include "select.h"
#include "step.h"
#include "ulam/reduce.h"

namespace ulam::cpu {
namespace {

// What one chain's row makes its D and its noise of.
struct ReduceChain {
  const float* c;
  uint32_t reads;
  bool reads_x, makes_noise;
  int64_t elements;
  Output output;
  Data state, noise;
  Stream stream;

  ReduceChain(const Step& s, int64_t b)
      : c(s.coef + s.row[b] * row_width(s.registers)),
        reads(reduction_reads(static_cast<uint32_t>(s.flags[s.row[b]]), c)),
        reads_x(c[kKx] != 0.0f),
        makes_noise((reads & kReadsNoise) && !s.noise),
        elements(s.elements),
        output(s, b, reads),
        state(s.state, s.state_type, b * s.elements),
        noise(s.noise, kFloat32, b * s.elements),
        stream{} {
    if (makes_noise) stream = stream_of(s, b);
  }

  template <class V>
  ULAM_HD typename V::f x0(int64_t i) const {
    return unclipped_x0<V>(c, reads_x ? state.load<V>(i) : V::set(0.0f), output.load<V>(i));
  }
};

// Writes the bits of |D|, which order like the numbers, and returns whether one of them is NaN.
struct Magnitudes {
  const ReduceChain& chain;
  uint32_t* bits;
  bool* has_nan;

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    for (int k = 0; k < V::vectors && k * V::width < count; ++k) {
      const int64_t at = i + k * V::width;
      const typename V::u magnitude = V::and_(V::bits(chain.x0<V>(at)), 0x7fffffffu);
      if (V::above(magnitude, 0x7f800000u)) *has_nan = true;
      std::memcpy(bits + at, &magnitude, sizeof magnitude);
    }
  }
};

// Counts the numbers below a bracket and collects those inside it.
struct Bracketed {
  const uint32_t* bits;
  Bracket bracket;
  uint32_t* inside;
  int64_t *below, *found;

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    for (int k = 0; k < V::vectors && k * V::width < count; ++k) {
      const int64_t at = i + k * V::width;
      typename V::u x;
      std::memcpy(&x, bits + at, sizeof x);
      const uint32_t reached = V::above(x, bracket.low - 1);
      *below += V::width - __builtin_popcount(reached);
      for (uint32_t left = reached & ~V::above(x, bracket.high); left; left &= left - 1)
        inside[(*found)++] = bits[at + __builtin_ctz(left)];
    }
  }
};

// The order statistics k and k + 1 of n numbers, k + 1 < n: among the few that a bracket leaves, if it holds them.
template <class V>
void order_statistics(uint32_t* bits, int64_t n, int64_t k, uint32_t* inside, uint32_t found[2]) {
  if (n >= kLeastBracketed) {
    int64_t below = 0, count = 0;
    for_groups<V>(0, n, Bracketed{bits, bracket_of(bits, n, k), inside, &below, &count});
    if (below <= k && k + 1 < below + count) return select(inside, count, k - below, found);
  }
  select(bits, n, k, found);
}

template <class V>
Scales threshold(const ReduceChain& chain, uint32_t* scratch) {
  const int64_t n = chain.elements;
  bool has_nan = false;
  for_groups<V>(0, n, Magnitudes{chain, scratch, &has_nan});
  if (has_nan) return threshold_scales(not_a_number(), not_a_number(), 0.0f, chain.c[kHigh]);
  const Rank rank = rank_of(chain.c[kLow], n);
  uint32_t found[2];
  order_statistics<V>(scratch, n, rank.k, scratch + n, found);
  return threshold_scales(Scalar::as_float(found[0]), Scalar::as_float(found[1]), rank.t, chain.c[kHigh]);
}

// Adds the squares of D and z to their lanes. A square of fp32 is exact in fp64.
struct Squares {
  const ReduceChain& chain;
  double *d, *z;  // [kLanes]

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    static_assert(kLanes % kGroup<V> == 0, "a group must not wrap round the lanes");
    alignas(64) float x0[kGroup<V>], noise[kGroup<V>];
    typename V::f made[V::vectors];
    if (chain.makes_noise) normals<V>(chain.stream, static_cast<uint32_t>(i >> 2), made);
    for (int k = 0; k < V::vectors && k * V::width < count; ++k) {
      const int64_t at = i + k * V::width;
      V::store(x0, kFloat32, k * V::width, chain.x0<V>(at));
      V::store(noise, kFloat32, k * V::width, chain.makes_noise ? made[k] : chain.noise.load<V>(at));
    }
    double *const d_lanes = d + i % kLanes, *const z_lanes = z + i % kLanes;
    const int64_t here = count < kGroup<V> ? count : kGroup<V>;  // the last call gets all that is left
    for (int64_t j = 0; j < here; ++j) {
      const double a = x0[j], b = noise[j];
      d_lanes[j] += a * a;
      z_lanes[j] += b * b;
    }
  }
};

// Lanes beyond the chain's elements hold 0 and are left out.
inline double sum_lanes(double* lanes, int width) {
  while ((width /= 2) > 0)
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  return lanes[0];
}

template <class V>
Scales normalise(const ReduceChain& chain) {
  alignas(64) double d[kLanes], z[kLanes];
  int width = 1;
  while (width < kLanes && width < chain.elements) width *= 2;
  for (int l = 0; l < width; ++l) d[l] = z[l] = 0.0;
  for_groups<V>(0, chain.elements, Squares{chain, d, z});
  return normalising_scales(sum_lanes(z, width), sum_lanes(d, width));
}

// The chains [begin, end). `scratch` is two words an element of one chain.
template <class V>
void reduce_chains(const Reduce& s, uint32_t* scratch, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const uint32_t flags = static_cast<uint32_t>(s.step.flags[s.step.row[b]]);
    Scales& out = reinterpret_cast<Scales*>(s.out)[b];
    if (flags & kThreshold)
      out = threshold<V>(ReduceChain(s.step, b), scratch);
    else if (flags & kNormalise)
      out = normalise<V>(ReduceChain(s.step, b));
    else
      out = no_scales();
  }
}

}  // namespace
}  // namespace ulam::cpu
