// Mask blending with a known image over one instruction set's lanes. Part of kernels_impl.h.
#pragma once

#include "groups.h"

namespace ulam::cpu {
namespace {

struct BlendChain {
  float a, b, next;
  bool makes_noise;
  Data state, known, mask, noise, net_in;
  Stream stream;

  // `at` is where the chain's coefficients are.
  BlendChain(const Blend& s, int64_t i, int64_t at)
      : a(s.a[at]),
        b(s.b[at]),
        next(s.net_in ? s.c_next[at] : 0.0f),
        makes_noise(b != 0.0f && !s.noise),
        state(s.state, s.state_type, i * s.elements),
        known(s.known, kFloat32, i * s.elements),
        mask(s.mask, kFloat32, i * s.elements),
        noise(s.noise, kFloat32, i * s.elements),
        net_in(s.net_in, s.net_type, i * s.elements),
        stream{} {
    if (makes_noise) stream = stream_of(s, i, 0, static_cast<uint64_t>(s.stage));
  }

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    typename V::f z[V::vectors];
    for (auto& zero : z) zero = V::set(0.0f);
    if (makes_noise) normals<V>(stream, static_cast<uint32_t>(i >> 2), z);
    ULAM_UNROLL
    for (int k = 0; k < V::vectors; ++k) {
      const int64_t at = i + k * V::width;
      if (k * V::width >= count) break;
      typename V::f y = V::set(-0.0f);
      if (a != 0.0f) y = V::fma(V::set(a), known.load<V>(at), y);
      if (b != 0.0f) y = V::fma(V::set(b), makes_noise ? z[k] : noise.load<V>(at), y);
      const typename V::f x = state.store<V>(at, blended<V>(mask.load<V>(at), y, state.load<V>(at)));
      if (net_in.address) net_in.store<V>(at, V::mul(V::set(next), x));
    }
  }
};

template <class V>
void blend_units(const Blend& s, int64_t chunk, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Span span(unit, s.elements, chunk);
    const int64_t at = s.row ? s.row[span.chain] : span.chain;
    if (s.a[at] != 0.0f || s.b[at] != 0.0f) for_groups<V>(span.begin, span.end, BlendChain(s, span.chain, at));
  }
}

}  // namespace
}  // namespace ulam::cpu
