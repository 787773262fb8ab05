// What the fused step does to the elements of one chain, over one instruction set's lanes. Part of step.h.
#pragma once

#include <cmath>

#include "squares.h"

namespace ulam::cpu {
namespace {

// The model's output for one chain, after guidance. What a weight of 0 or 1 leaves out is not read.
struct Output {
  float weight;
  bool reads_cond, reads_uncond;
  Data model, uncond, variance;

  Output(const Step& s, int64_t b, uint32_t flags)
      : weight(s.uncond ? s.guidance[b] : 1.0f),
        reads_cond((flags & kReadsModel) && weight != 0.0f),
        reads_uncond((flags & kReadsModel) && weight != 1.0f),
        model(s.model, s.model_type, b * s.model_stride),
        uncond(s.uncond, s.model_type, b * s.model_stride),
        variance(s.model, s.model_type, b * s.model_stride + s.elements) {}

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
template <int R, class Squares = Unrecorded>
struct StepChain {
  Row<R> row;
  bool reads_noise, makes_noise;
  int64_t register_stride;
  Output output;
  Scales scales;  // of rows with a reduction
  Data state, source, noise, net_in;
  Stream stream;
  Squares squares;

  StepChain(const Step& s, int64_t b, Squares squares = {})
      : row(s.coef + s.row[b] * row_width(R), static_cast<uint32_t>(s.flags[s.row[b]])),
        reads_noise(row.flags & kReadsNoise),
        makes_noise(reads_noise && !s.noise),
        register_stride(s.chains * s.elements),
        output(s, b, row.flags),
        scales{},
        state(s.state, s.state_type, b * s.elements),
        source(s.source, s.state_type, b * s.elements),
        noise(s.noise, kFloat32, b * s.elements),
        net_in(s.net_in, s.net_type, b * s.elements),
        stream{},
        squares(squares) {
    if (makes_noise) stream = stream_of(s, b);
    if (row.flags & kReduced) scales = reinterpret_cast<const Scales*>(s.scales)[b];
  }

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    typename V::f z[V::vectors];
    for (auto& zero : z) zero = V::set(0.0f);
    if (makes_noise) normals<V>(stream, static_cast<uint32_t>(i >> 2), z);
    typename Squares::template Group<V> sum(squares);
    ULAM_UNROLL
    for (int k = 0; k < V::vectors; ++k)
      if (k * V::width < count) element<V>(i + k * V::width, z[k], sum);
    sum.end();
  }

  template <class V, class Sum>
  ULAM_HD void element(int64_t i, typename V::f z, Sum& sum) const {
    using f = typename V::f;
    f x0 = V::set(0.0f), r[R];
    const f m = output.load<V>(i);
    ULAM_UNROLL
    for (int j = 0; j < R; ++j) r[j] = row.reads >> j & 1 ? old<V>(j, i) : V::set(0.0f);
    if (row.flags & kUsesX0)
      x0 = row.flags & kReduced ? estimate_x0<V>(row.c, scales, r[0], m) : estimate_x0<V>(row.c, r[0], m);
    if (reads_noise) {
      if (makes_noise)
        sum.template add<false>(z);
      else
        sum.template add<true>(z = noise.load<V>(i));
      if (row.flags & kLearned) z = learned_noise<V>(row, output.variance.load<V>(i), z);
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

enum class Noise { none, made, given };
enum class Form { affine, state_and_estimate, estimate_and_output };

// The commonest rows, x' = a x + b m, a x + d D or d D + b m with D = clip(kx x + km m, low, high), and + c z, on fp32
// tensors: the same bits as above, without branches.
template <Form form, Noise noise, class Squares>
struct PlainChain {
  // Noise is made 2^10 times as large for its squares, and c as much smaller: the same product, bit for bit.
  static constexpr bool scales = Squares::records && noise == Noise::made;

  float* to;
  const float *x, *m, *given;
  float a, d, b, c, kx, km, low, high;
  Stream stream;
  Squares squares;

  template <int R>
  explicit PlainChain(const StepChain<R, Squares>& s)
      : to(reinterpret_cast<float*>(s.state.address)),
        x(reinterpret_cast<const float*>(s.source.address)),
        m(reinterpret_cast<const float*>(s.output.model.address)),
        given(reinterpret_cast<const float*>(s.noise.address)),
        a(s.row.a(0, 0)),
        d(s.row.a(0, R)),
        b(s.row.a(0, R + 1)),
        c(s.row.a(0, R + 2) / (scales ? 1 << kSquaresDoublings : 1)),
        kx(s.row.c[kKx]),
        km(s.row.c[kKm]),
        low(s.row.c[kLow]),
        high(s.row.c[kHigh]),
        stream(s.stream),
        squares(s.squares) {}

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    if constexpr (scales) return record<V>(i, count);
    typename V::f z[V::vectors];
    for (auto& zero : z) zero = V::set(0.0f);
    if (noise == Noise::made) normals<V>(stream, static_cast<uint32_t>(i >> 2), z);
    typename Squares::template Group<V> sum(squares);
    if (count >= kGroup<V>) {
      ULAM_UNROLL
      for (int k = 0; k < V::vectors; ++k) element<V>(i + k * V::width, z[k], sum);
    } else {
      for (int k = 0; k * V::width < count; ++k) element<V>(i + k * V::width, z[k], sum);
    }
    sum.end();
  }

  // The same with the squares of the noise, which are taken while it is made: there the units for sums have time.
  template <class V>
  ULAM_HD void record(int64_t i, int64_t count) const {
    const uint32_t block = static_cast<uint32_t>(i >> 2);
    typename Squares::template Group<V> sum(squares);
    typename V::f z[V::vectors];
    if (count >= kGroup<V>) {
      scaled_normals<V>(stream, block, z, sum);
      ULAM_UNROLL
      for (int k = 0; k < V::vectors; ++k) element<V>(i + k * V::width, z[k], sum);
    } else {
      scaled_normals<V>(stream, block, z, Unseen());
      for (int k = 0; k * V::width < count; ++k) {
        sum.template add<false, true>(z[k]);
        element<V>(i + k * V::width, z[k], sum);
      }
    }
    sum.end();
  }

  template <class V, class Sum>
  ULAM_HD void element(int64_t at, typename V::f z, Sum& sum) const {
    using f = typename V::f;
    const f old = V::load(x, kFloat32, at), output = V::load(m, kFloat32, at);
    f t = V::set(-0.0f);
    if (form != Form::estimate_and_output) t = V::mul(V::set(a), old);
    if (form != Form::affine) {
      const f x0 = V::fma(V::set(km), output, V::mul(V::set(kx), old));
      t = V::fma(V::set(d), V::clip(x0, V::set(low), V::set(high)), t);
    }
    if (form != Form::state_and_estimate) t = V::fma(V::set(b), output, t);
    if (noise == Noise::given) z = V::load(given, kFloat32, at);
    if (noise == Noise::given) sum.template add<true>(z);
    if (noise != Noise::none) t = V::fma(V::set(c), z, t);
    V::store(to, kFloat32, at, t);
  }
};

// The terms of a form, as in Row.
template <Form form, int R>
constexpr uint32_t terms_of() {
  const uint32_t x = 1u, estimate = 1u << R, output = 2u << R;
  return form == Form::affine ? x | output : form == Form::state_and_estimate ? x | estimate : estimate | output;
}

// Runs a row of this form; returns false for another.
template <class V, Form form, int R, class Squares>
bool plain_units(const StepChain<R, Squares>& s, int64_t begin, int64_t end) {
  const Row<R>& row = s.row;
  if (row.terms[0] != (terms_of<form, R>() | (s.reads_noise ? 4u << R : 0u))) return false;
  if (form != Form::affine && (row.c[kKx] == 0.0f || row.c[kKm] == 0.0f)) return false;
  if (Squares::records && !(std::abs(row.a(0, R + 2)) > 0x1p-100f)) return false;  // a smaller one has fewer bits
  if (!s.reads_noise) {
    if constexpr (!Squares::records) for_groups<V>(begin, end, PlainChain<form, Noise::none, Squares>(s));
  } else if (s.makes_noise) {
    run_groups<V>(begin, end, PlainChain<form, Noise::made, Squares>(s));
  } else {
    run_groups<V>(begin, end, PlainChain<form, Noise::given, Squares>(s));
  }
  return true;
}

// Executes the chain's row on the elements [begin, end).
template <class V, int R, class Squares>
void step_elements(const StepChain<R, Squares>& chain, int64_t begin, int64_t end) {
  const bool plain = (chain.row.flags & ~(kReadsModel | kReadsNoise | kUsesX0)) == 1 && chain.state.type == kFloat32 &&
                     chain.output.model.type == kFloat32 && !chain.output.reads_uncond && !chain.net_in.address;
  if (plain &&
      (plain_units<V, Form::affine>(chain, begin, end) || plain_units<V, Form::state_and_estimate>(chain, begin, end) ||
       plain_units<V, Form::estimate_and_output>(chain, begin, end)))
    return;
  run_groups<V>(begin, end, chain);
}

}  // namespace
}  // namespace ulam::cpu
