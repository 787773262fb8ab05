// The operations over one instruction set's lanes. Included once per instruction set, after its lanes;
// everything is in an unnamed namespace, so that no function compiled for one set can be linked into another.
#pragma once

#include "kernels.h"
#include "lanes_scalar.h"
#include "ulam/noise.h"
#include "ulam/row.h"

namespace ulam::cpu {
namespace {

// The part of a chain that one unit covers.
struct Span {
  int64_t chain, begin, end;
  Span(int64_t unit, int64_t elements, int64_t chunk) {
    const int64_t per_chain = (elements + chunk - 1) / chunk;
    chain = unit / per_chain;
    begin = (unit % per_chain) * chunk;
    end = begin + chunk < elements ? begin + chunk : elements;
  }
};

// The elements that are worked on together.
template <class V>
constexpr int kGroup = V::width * V::vectors;

// A group of normals in memory order, from the first of `block` on.
template <class V>
inline void normals(const Stream& stream, uint32_t block, typename V::f z[V::vectors]) {
  typename V::u w[V::vectors];
  V::words(stream, block, w);
  ULAM_UNROLL
  for (int k = 0; k < V::vectors; k += 4) {
    box_muller<V>(w + k, z + k);
    V::interleave(z + k);
  }
}

// Runs body<V>(i, count) over [begin, end), at most a group at a time and always whole vectors, and the rest, less
// than a vector, one block at a time, body<Portable>. begin is a multiple of 4.
template <class V, class Body>
ULAM_HD void for_groups(int64_t begin, int64_t end, const Body body) {
  int64_t i = begin;
  for (int64_t count; (count = end - i) >= V::width; i += count) {
    count = count < kGroup<V> ? count - count % V::width : kGroup<V>;
    body.template operator()<V>(i, count);
  }
  for (; i < end; i += 4) body.template operator()<Portable>(i, end - i);
}

// A tensor of one chain. `offset` is in elements.
struct Data {
  char* address;
  DType type;
  Data(const void* base, DType dtype, int64_t offset)
      : address(base ? static_cast<char*>(const_cast<void*>(base)) + offset * (dtype == kFloat32 ? 4 : 2) : nullptr),
        type(dtype) {}
  template <class V>
  ULAM_HD typename V::f load(int64_t i) const {
    return V::load(address, type, i);
  }
  template <class V>
  ULAM_HD typename V::f store(int64_t i, typename V::f x) const {
    return V::store(address, type, i, x);
  }
};

// One chain at its row: all that the loop over its elements needs, by value, so that stores cannot alias it.
template <int R>
struct StepChain {
  Row<R> row;
  bool reads_cond, reads_uncond, reads_noise, makes_noise;
  float weight;
  int64_t elements, register_stride;
  Data state, model, uncond, noise, net_in;
  Stream stream;

  StepChain(const Step& s, int64_t b)
      : row(s.coef + s.row[b] * row_width(R), static_cast<uint32_t>(s.flags[s.row[b]])),
        reads_noise(row.flags & kReadsNoise),
        makes_noise(reads_noise && !s.noise),
        weight(s.uncond ? s.guidance[b] : 1.0f),
        elements(s.elements),
        register_stride(s.chains * s.elements),
        state(s.state, s.state_type, b * s.elements),
        model(s.model, s.model_type, b * s.model_stride),
        uncond(s.uncond, s.model_type, b * s.model_stride),
        noise(s.noise, kFloat32, b * s.elements),
        net_in(s.net_in, s.net_type, b * s.elements),
        stream{} {
    reads_cond = (row.flags & kReadsModel) && weight != 0.0f;
    reads_uncond = (row.flags & kReadsModel) && weight != 1.0f;
    if (makes_noise)
      stream = make_stream(static_cast<uint64_t>(s.seed[b]), static_cast<uint64_t>(s.chain[b]),
                           static_cast<uint64_t>(s.draw[b]), 0);
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
    f m = V::set(0.0f), x0 = V::set(0.0f), r[R];
    if (reads_cond) m = model.load<V>(i);
    if (reads_uncond) {
      const f u = uncond.load<V>(i);
      m = reads_cond ? guide<V>(m, u, weight) : u;
    }
    ULAM_UNROLL
    for (int j = 0; j < R; ++j) r[j] = row.reads >> j & 1 ? state.load<V>(j * register_stride + i) : V::set(0.0f);
    if (row.flags & kUsesX0) x0 = estimate_x0<V>(row, r[0], m);
    if (reads_noise) {
      if (!makes_noise) z = noise.load<V>(i);
      if (row.flags & kLearned) z = learned_noise<V>(row, model.load<V>(elements + i), z);
    }
    update_registers<V>(row, r, x0, m, z);
    ULAM_UNROLL
    for (int j = 0; j < R; ++j)
      if (row.flags >> j & 1) r[j] = state.store<V>(j * register_stride + i, r[j]);
    if (net_in.address) {
      const f x = row.flags & 1 ? r[0] : state.load<V>(i);
      net_in.store<V>(i, V::mul(V::set(row.c[kNextScale]), x));
    }
  }
};

// The commonest row, x' = a x + b m + c z on fp32 tensors, without the branches of the general one: the same bits in
// a third of the instructions beside the noise.
struct PlainChain {
  float* x;
  const float* m;
  float a, b, c;
  Stream stream;

  template <int R>
  static bool fits(const StepChain<R>& s) {
    return (s.row.flags & ~(kReadsModel | kReadsNoise)) == 1 && (s.row.reads | s.row.terms[0]) != 0 &&
           (s.row.reads & ~1u) == 0 && s.state.type == kFloat32 && s.model.type == kFloat32 && !s.reads_uncond &&
           s.makes_noise == s.reads_noise && !s.net_in.address;
  }
  template <int R>
  explicit PlainChain(const StepChain<R>& s)
      : x(reinterpret_cast<float*>(s.state.address)),
        m(reinterpret_cast<const float*>(s.model.address)),
        a(s.row.a(0, 0)),
        b(s.row.a(0, R + 1)),
        c(s.row.a(0, R + 2)),
        stream(s.stream) {}

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    typename V::f z[V::vectors];
    if (c != 0.0f) normals<V>(stream, static_cast<uint32_t>(i >> 2), z);
    ULAM_UNROLL
    for (int k = 0; k < V::vectors; ++k) {
      const int64_t at = i + k * V::width;
      if (k * V::width >= count) break;
      typename V::f t = V::set(-0.0f);
      if (a != 0.0f) t = V::fma(V::set(a), V::load(x, kFloat32, at), t);
      if (b != 0.0f) t = V::fma(V::set(b), V::load(m, kFloat32, at), t);
      if (c != 0.0f) t = V::fma(V::set(c), z[k], t);
      V::store(x, kFloat32, at, t);
    }
  }
};

template <class V, int R>
void step_units(const Step& s, int64_t chunk, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Span span(unit, s.elements, chunk);
    const StepChain<R> chain(s, span.chain);
    if (PlainChain::fits(chain))
      for_groups<V>(span.begin, span.end, PlainChain(chain));
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
void fill_units(const Fill& s, int64_t chunk, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Span span(unit, s.elements, chunk);
    const int64_t b = span.chain;
    const FillChain chain{s, b * s.elements - s.offset,
                          make_stream(static_cast<uint64_t>(s.seed[b]), static_cast<uint64_t>(s.chain[b]),
                                      static_cast<uint64_t>(s.draw[b]), s.tag)};
    int64_t first = span.begin + s.offset;
    const int64_t last = span.end + s.offset;
    if (first & 3) {  // an offset inside a block: its first elements belong to somebody else
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
constexpr Kernels kernels_of(const char* name) {
  return {name, step_any<V>, fill_units<V>, affine_units<V>, hash_noise_words<V>};
}

}  // namespace
}  // namespace ulam::cpu
