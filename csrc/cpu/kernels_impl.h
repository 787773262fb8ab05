// The operations over one instruction set's lanes. Included once per instruction set, after its lanes;
// everything is in an unnamed namespace, so that no function compiled for one set can be linked into another.
#pragma once

#include "blend.h"
#include "digest.h"
#include "groups.h"
#include "likelihood.h"
#include "mcmc_steps.h"
#include "moments.h"
#include "reduce.h"
#include "step.h"
#include "tick.h"
#include "torch_normal_impl.h"
#include "trees.h"
#include "walk.h"

namespace ulam::cpu {
namespace {

struct FillChain {
  const Fill& s;
  int64_t at;  // index in `out` of element 0 of the whole sample
  Stream stream;

  template <class V>
  inline void operator()(int64_t i, int64_t count) const {
    typename V::f z[V::vectors];
    normals<V>(stream, static_cast<uint32_t>(i >> 2), z);
    for (int k = 0; k < V::vectors && k * V::width < count; ++k)
      V::store(s.out, s.type, at + i + k * V::width, V::mul(V::set(s.scale), z[k]));
  }
};

template <class V>
void fill_normal_units(const Fill& s, int64_t chunk, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Span span(unit, s.elements, chunk);
    const int64_t b = span.chain;
    const FillChain chain{s, b * s.elements - s.offset, stream_of(s, b, s.tag)};
    int64_t first = span.begin + s.offset;
    const int64_t last = span.end + s.offset;
    if (first & 3) {  // an offset inside a block: its first elements are not wanted
      float z[4];
      normals<Portable>(chain.stream, static_cast<uint32_t>(first >> 2), z);
      for (; (first & 3) && first < last; ++first)
        Portable::store(s.out, s.type, chain.at + first, Portable::mul(s.scale, z[first & 3]));
    }
    for_groups<V>(first, last, chain);
  }
}

struct AffineChain {
  const Affine& s;
  int64_t at;
  float a, b;

  template <class V>
  inline void operator()(int64_t i, int64_t count) const {
    for (int k = 0; k < V::vectors && k * V::width < count; ++k) {
      const int64_t j = at + i + k * V::width;
      typename V::f t = V::set(a != 0.0f || b != 0.0f ? -0.0f : 0.0f);
      if (a != 0.0f) t = V::fma(V::set(a), V::load(s.x, s.x_type, j), t);
      if (b != 0.0f) t = V::fma(V::set(b), V::load(s.m, s.m_type, j), t);
      V::store(s.out, s.out_type, j, t);
    }
  }
};

template <class V>
void affine_units(const Affine& s, int64_t chunk, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Span span(unit, s.elements, chunk);
    const AffineChain chain{s, span.chain * s.elements, s.a[span.chain], s.b[span.chain]};
    for_groups<V>(span.begin, span.end, chain);
  }
}

// The checksums of the noise standard: sum of bits(f(x)) * (x * 0x9E3779B97F4A7C15 | 1) for f = radius,
// cosine, sine.
template <class V>
void hash_noise_words(uint64_t first, uint64_t count, uint64_t sums[3]) {
  alignas(64) uint32_t x[V::width], y[3][V::width];
  for (uint64_t i = first; i < first + count; i += V::width) {
    for (int k = 0; k < V::width; ++k) x[k] = static_cast<uint32_t>(i + k);
    typename V::u w;
    std::memcpy(&w, x, sizeof w);
    typename V::f c, s;
    circle<V>(w, c, s);
    const typename V::f f[3] = {radius<V>(w), c, s};
    std::memcpy(y, f, sizeof y);
    for (int k = 0; k < V::width; ++k) {
      const uint64_t factor = x[k] * 0x9E3779B97F4A7C15ull | 1;
      for (int j = 0; j < 3; ++j) sums[j] += y[j][k] * factor;
    }
  }
}

template <class V>
int64_t multiply_add_rounds(int64_t rounds, float* out) {
  constexpr int kApart = 12;  // more than latency times units
  typename V::f sum[kApart];
  for (int i = 0; i < kApart; ++i) sum[i] = V::set(static_cast<float>(i));
  const typename V::f a = V::set(0.75f), b = V::set(0.25f);
  for (int64_t round = 0; round < rounds; ++round) {
    ULAM_UNROLL
    for (int i = 0; i < kApart; ++i) sum[i] = V::fma(sum[i], a, b);
  }
  for (int i = 0; i < kApart; ++i) V::store(out, kFloat32, 0, V::add(sum[i], V::load(out)));
  return 2 * kApart * V::width * rounds;
}

template <class V>
constexpr Kernels kernels_of(const char* name) {
  Kernels k{};
  k.name = name;
  k.width = V::width;
  k.panel = kPanel<V>;
#define ULAM_UNITS(operation, Arguments) k.operation = operation##_units<V>;
  ULAM_SHARED_OPERATIONS(ULAM_UNITS)
  ULAM_CPU_OPERATIONS(ULAM_UNITS)
#undef ULAM_UNITS
  k.reduce = reduce_chains<V>;
  k.find_bad = find_bad_units;
  k.count_on = count_on_chains;
  k.walk = walk_units<V>;
  k.call_network = call_network<V>;
  k.look_up = look_up_chains;
  k.first_outside = first_outside;
  k.digest = digest_arrays<V>;
  k.multiply_adds = multiply_add_rounds<V>;
  k.hash_noise = hash_noise_words<V>;
  if constexpr (V::width > 1) {
    k.mt19937 = extend<V>;
    k.torch_transform = transform<V>;
  }
  return k;
}

}  // namespace
}  // namespace ulam::cpu
