// The fused step over one instruction set's lanes. Part of kernels_impl.h.
#pragma once

#include "groups.h"

namespace ulam::cpu {
namespace {

// The model's output for one chain, after guidance. What a weight of 0 or 1 leaves out is not read.
struct Output {
  float weight;
  bool reads_cond, reads_uncond;
  Data model, uncond;

  Output(const Step& s, int64_t b, uint32_t flags)
      : weight(s.uncond ? s.guidance[b] : 1.0f),
        reads_cond((flags & kReadsModel) && weight != 0.0f),
        reads_uncond((flags & kReadsModel) && weight != 1.0f),
        model(s.model, s.model_type, b * s.model_stride),
        uncond(s.uncond, s.model_type, b * s.model_stride) {}

  template <class V>
  ULAM_HD typename V::f load(int64_t i) const {
    typename V::f m = V::set(0.0f);
    if (reads_cond) m = model.load<V>(i);
    if (reads_uncond) {
      const typename V::f u = uncond.load<V>(i);
      m = reads_cond ? guide<V>(m, u, weight) : u;
    }
    return m;
  }
};

// One chain at its row: all that the loop over its elements needs, by value, so that stores cannot alias it.
template <int R>
struct StepChain {
  Row<R> row;
  bool reads_noise, makes_noise;
  int64_t elements, register_stride;
  Output output;
  Scales scales;  // of rows with a reduction
  Data state, source, noise, net_in;
  Stream stream;

  StepChain(const Step& s, int64_t b)
      : row(s.coef + s.row[b] * row_width(R), static_cast<uint32_t>(s.flags[s.row[b]])),
        reads_noise(row.flags & kReadsNoise),
        makes_noise(reads_noise && !s.noise),
        elements(s.elements),
        register_stride(s.chains * s.elements),
        output(s, b, row.flags),
        scales{},
        state(s.state, s.state_type, b * s.elements),
        source(s.source, s.state_type, b * s.elements),
        noise(s.noise, kFloat32, b * s.elements),
        net_in(s.net_in, s.net_type, b * s.elements),
        stream{} {
    if (makes_noise) stream = stream_of(s, b);
    if (row.flags & kReduced) scales = reinterpret_cast<const Scales*>(s.scales)[b];
  }

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    typename V::f z[V::vectors];
    for (auto& zero : z) zero = V::set(0.0f);
    if (makes_noise) normals<V>(stream, static_cast<uint32_t>(i >> 2), z);
    ULAM_UNROLL
    for (int k = 0; k < V::vectors; ++k)
      if (k * V::width < count) element<V>(i + k * V::width, z[k]);
  }

  template <class V>
  ULAM_HD void element(int64_t i, typename V::f z) const {
    using f = typename V::f;
    f x0 = V::set(0.0f), r[R];
    const f m = output.load<V>(i);
    ULAM_UNROLL
    for (int j = 0; j < R; ++j) r[j] = row.reads >> j & 1 ? old<V>(j, i) : V::set(0.0f);
    if (row.flags & kUsesX0)
      x0 = row.flags & kReduced ? estimate_x0<V>(row.c, scales, r[0], m) : estimate_x0<V>(row.c, r[0], m);
    if (reads_noise) {
      if (!makes_noise) z = noise.load<V>(i);
      if (row.flags & kLearned) z = learned_noise<V>(row, output.model.load<V>(elements + i), z);
      if (row.flags & kNormalise) z = V::mul(V::set(scales.z), z);
    }
    update_registers<V>(row, r, x0, m, z);
    ULAM_UNROLL
    for (int j = 0; j < R; ++j)
      if (row.flags >> j & 1) r[j] = state.store<V>(j * register_stride + i, r[j]);
    if (net_in.address) {
      const f x = row.flags & 1 ? r[0] : old<V>(0, i);
      net_in.store<V>(i, V::mul(V::set(row.c[kNextScale]), x));
    }
  }

  template <class V>
  ULAM_HD typename V::f old(int j, int64_t i) const {
    return j == 0 ? source.load<V>(i) : state.load<V>(j * register_stride + i);
  }
};

// The commonest rows, x' = a x + d D + b m + c z with D = clip(kx x + km m, low, high) on fp32 tensors, without the
// branches of the general one: the same bits in a third of the instructions beside the noise.
struct PlainChain {
  float* to;
  const float *x, *m, *given;
  float a, d, b, c, kx, km, low, high;
  Stream stream;

  template <int R>
  static bool fits(const StepChain<R>& s) {
    const bool estimates = s.row.flags & kUsesX0;
    return (s.row.flags & ~(kReadsModel | kReadsNoise | kUsesX0)) == 1 && s.row.terms[0] != 0 &&
           (s.row.reads & ~1u) == 0 && s.state.type == kFloat32 && s.output.model.type == kFloat32 &&
           !s.output.reads_uncond && !s.net_in.address && (!estimates || s.row.c[kKx] != 0.0f || s.row.c[kKm] != 0.0f);
  }
  template <int R>
  explicit PlainChain(const StepChain<R>& s)
      : to(reinterpret_cast<float*>(s.state.address)),
        x(reinterpret_cast<const float*>(s.source.address)),
        m(reinterpret_cast<const float*>(s.output.model.address)),
        given(reinterpret_cast<const float*>(s.noise.address)),
        a(s.row.a(0, 0)),
        d(s.row.a(0, R)),
        b(s.row.a(0, R + 1)),
        c(s.row.a(0, R + 2)),
        kx(d != 0.0f ? s.row.c[kKx] : 0.0f),
        km(d != 0.0f ? s.row.c[kKm] : 0.0f),
        low(s.row.c[kLow]),
        high(s.row.c[kHigh]),
        stream(s.stream) {}

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    using f = typename V::f;
    f z[V::vectors];
    if (c != 0.0f && !given) normals<V>(stream, static_cast<uint32_t>(i >> 2), z);
    ULAM_UNROLL
    for (int k = 0; k < V::vectors; ++k) {
      const int64_t at = i + k * V::width;
      if (k * V::width >= count) break;
      f t = V::set(-0.0f), old = t, output = t;
      if (a != 0.0f || kx != 0.0f) old = V::load(x, kFloat32, at);
      if (b != 0.0f || km != 0.0f) output = V::load(m, kFloat32, at);
      if (a != 0.0f) t = V::fma(V::set(a), old, t);
      if (d != 0.0f) {
        f x0 = V::set(-0.0f);
        if (kx != 0.0f) x0 = V::fma(V::set(kx), old, x0);
        if (km != 0.0f) x0 = V::fma(V::set(km), output, x0);
        t = V::fma(V::set(d), V::clip(x0, V::set(low), V::set(high)), t);
      }
      if (b != 0.0f) t = V::fma(V::set(b), output, t);
      if (c != 0.0f) t = V::fma(V::set(c), given ? V::load(given, kFloat32, at) : z[k], t);
      V::store(to, kFloat32, at, t);
    }
  }
};

// The same without looking at coefficients in the loop: x' = a x + b m, or a x + d D with D of x and m; and given noise.
template <bool estimates, bool noisy>
struct FullChain {
  PlainChain p;

  static bool fits(const PlainChain& p) {
    const bool on_both = estimates ? p.b == 0.0f && p.d != 0.0f && p.kx != 0.0f && p.km != 0.0f : p.b != 0.0f;
    return p.a != 0.0f && on_both && (p.d != 0.0f) == estimates && (p.c != 0.0f) == noisy && (!noisy || p.given);
  }

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    if (count >= kGroup<V>) {
      ULAM_UNROLL
      for (int k = 0; k < V::vectors; ++k) element<V>(i + k * V::width);
    } else {
      for (int k = 0; k * V::width < count; ++k) element<V>(i + k * V::width);
    }
  }

  template <class V>
  ULAM_HD void element(int64_t at) const {
    using f = typename V::f;
    const f x = V::load(p.x, kFloat32, at), m = V::load(p.m, kFloat32, at);
    f t = V::mul(V::set(p.a), x);
    if (estimates) {
      const f x0 = V::fma(V::set(p.km), m, V::mul(V::set(p.kx), x));
      t = V::fma(V::set(p.d), V::clip(x0, V::set(p.low), V::set(p.high)), t);
    } else {
      t = V::fma(V::set(p.b), m, t);
    }
    if (noisy) t = V::fma(V::set(p.c), V::load(p.given, kFloat32, at), t);
    V::store(p.to, kFloat32, at, t);
  }
};

template <class V>
void plain_units(const PlainChain& plain, int64_t begin, int64_t end) {
  if (FullChain<false, false>::fits(plain)) return for_groups<V>(begin, end, FullChain<false, false>{plain});
  if (FullChain<false, true>::fits(plain)) return for_groups<V>(begin, end, FullChain<false, true>{plain});
  if (FullChain<true, false>::fits(plain)) return for_groups<V>(begin, end, FullChain<true, false>{plain});
  if (FullChain<true, true>::fits(plain)) return for_groups<V>(begin, end, FullChain<true, true>{plain});
  for_groups<V>(begin, end, plain);
}

template <class V, int R>
void step_units(const Step& s, int64_t chunk, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Span span(unit, s.elements, chunk);
    const StepChain<R> chain(s, span.chain);
    if (PlainChain::fits(chain))
      plain_units<V>(PlainChain(chain), span.begin, span.end);
    else if (chain.row.flags & kWrites)
      for_groups<V>(span.begin, span.end, chain);
  }
}

template <class V>
void step_any(const Step& s, int64_t chunk, int64_t begin, int64_t end) {
  switch (s.registers) {
    case 1:
      return step_units<V, 1>(s, chunk, begin, end);
    case 2:
      return step_units<V, 2>(s, chunk, begin, end);
    case 3:
      return step_units<V, 3>(s, chunk, begin, end);
    case 4:
      return step_units<V, 4>(s, chunk, begin, end);
    default:
      return step_units<V, 5>(s, chunk, begin, end);
  }
}

}  // namespace
}  // namespace ulam::cpu
