// Sums over a chain of a variational bound's terms, over one instruction set's lanes, as in kernels_impl.h.
#pragma once

#include "reduce.h"
#include "ulam/likelihood.h"

namespace ulam::cpu {
namespace {

// A tensor of one chain: one number per element, or one for all.
struct Numbers {
  const float* address;
  bool per_element;

  template <class V>
  ULAM_HD typename V::f load(int64_t i) const {
    return per_element ? V::load(address + i) : V::set(*address);
  }
};

inline Numbers numbers_of(const float* base, bool per_element, int64_t chain, int64_t elements) {
  return {base + (per_element ? chain * elements : chain), per_element};
}

// Sums term<V>(i), the terms of the elements from i on, in the lanes of ulam/reduce.h.
template <class V, class Term>
double sum_terms(int64_t elements, const Term& term) {
  alignas(64) double lanes[kLanes];
  int width = 1;
  while (width < kLanes && width < elements) width *= 2;
  for (int l = 0; l < width; ++l) lanes[l] = 0.0;
  int64_t i = 0;
  for (; i + V::width <= elements; i += V::width) V::accumulate(lanes + i % kLanes, term.template at<V>(i));
  for (; i < elements; ++i) Portable::accumulate(lanes + i % kLanes, term.template at<Portable>(i));
  return sum_lanes(lanes, width);
}

// What is the same for the whole chain is computed once: `excess` and `precision`.
template <bool each_excess, bool each_precision>
struct TwiceKl {
  const float *mean_a, *mean_b;
  Numbers log_var_a, log_var_b;
  float excess, precision;

  template <class V>
  ULAM_HD typename V::f at(int64_t i) const {
    typename V::f d = V::set(excess), p = V::set(precision);
    if (each_excess) d = kl_excess<V>(log_var_a.template load<V>(i), log_var_b.template load<V>(i));
    if (each_precision) p = reciprocal_exp<V>(log_var_b.template load<V>(i));
    return twice_kl<V>(V::load(mean_a + i), V::load(mean_b + i), d, p);
  }
};

template <class V, bool each_excess, bool each_precision>
double kl_of_chain(const GaussianKl& s, int64_t b) {
  const Numbers log_var_a = numbers_of(s.log_var_a, s.per_element_a, b, s.elements);
  const Numbers log_var_b = numbers_of(s.log_var_b, s.per_element_b, b, s.elements);
  const float excess = kl_excess<Portable>(*log_var_a.address, *log_var_b.address);
  const float precision = reciprocal_exp<Portable>(*log_var_b.address);
  const int64_t first = b * s.elements;
  const TwiceKl<each_excess, each_precision> term{s.mean_a + first, s.mean_b + first, log_var_a,
                                                  log_var_b,        excess,           precision};
  return 0.5 * sum_terms<V>(s.elements, term);
}

template <class V>
void gaussian_kl_units(const GaussianKl& s, int64_t, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b)
    s.out[b] = s.per_element_b   ? kl_of_chain<V, true, true>(s, b)
               : s.per_element_a ? kl_of_chain<V, true, false>(s, b)
                                 : kl_of_chain<V, false, false>(s, b);
}

template <bool per_element, Cdf cdf>
struct LogBin {
  const float *x, *mean;
  Numbers log_scale;
  float inverse_scale, half, edge;

  template <class V>
  ULAM_HD typename V::f at(int64_t i) const {
    typename V::f inverse = V::set(inverse_scale);
    if (per_element) inverse = reciprocal_exp<V>(log_scale.template load<V>(i));
    const Bin<V> bin(V::load(x + i), V::load(mean + i), inverse, half, edge);
    return cdf == kExact ? log_bin<V>(bin) : log_bin_tanh<V>(bin);
  }
};

template <class V, bool per_element, Cdf cdf>
double likelihood_of_chain(const DiscretisedLikelihood& s, int64_t b) {
  const Numbers log_scale = numbers_of(s.log_scale, per_element, b, s.elements);
  const int64_t first = b * s.elements;
  const LogBin<per_element, cdf> term{
      s.x + first, s.mean + first, log_scale, reciprocal_exp<Portable>(*log_scale.address), s.half, s.edge};
  return sum_terms<V>(s.elements, term);
}

template <class V>
void discretised_log_likelihood_units(const DiscretisedLikelihood& s, int64_t, int64_t begin, int64_t end) {
  const auto of_chain =
      s.cdf == kExact ? (s.per_element ? likelihood_of_chain<V, true, kExact> : likelihood_of_chain<V, false, kExact>)
                      : (s.per_element ? likelihood_of_chain<V, true, kTanh> : likelihood_of_chain<V, false, kTanh>);
  for (int64_t b = begin; b < end; ++b) s.out[b] = of_chain(s, b);
}

}  // namespace
}  // namespace ulam::cpu
