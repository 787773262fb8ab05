// A network's values for a few chains, a lane a column: value [chain][kColumns]. Part of kernels_impl.h.
#pragma once

#include "network_lanes.h"

namespace ulam::cpu {
namespace {

constexpr int kColumns = 512 + 16;  // from chain to chain: not a multiple of a page's sets of cache lines

// C chains, whose columns are worked on NV vectors at a time.
template <class V, int C, int NV>
class ColumnsNetwork {
 public:
  using f = typename V::f;

  ColumnsNetwork(const Plan& plan, float* slots) : plan_(plan), slots_(slots) {}

  float* value(int slot) const { return slots_ + static_cast<int64_t>(slot) * C * kColumns; }

  // Of each chain its row's vector and its own.
  const float* evaluate(const float* const* rows, const float* const* chains) {
    rows_ = rows;
    chains_ = chains;
    for (int k = 0; k < plan_.size; ++k) {
      const Item& item = plan_.items[k];
      if (item.kind == Kind::kLinear) {
        linear(item);
        continue;
      }
      for (int c = 0; c < C; ++c) switch (item.kind) {
          case Kind::kUnary:
            std::memcpy(at(item.out, c), at(item.value, c), sizeof(float) * kColumns);
            activate<V>(at(item.out, c), whole(item.width), item.function, item.parameter);
            break;
          case Kind::kBinary:
            for (int j = 0; j < item.width; j += V::width)
              V::store(at(item.out, c), kFloat32, j,
                       binary<V>(item.function, operand(item.a, j, c, item.width), operand(item.b, j, c, item.width)));
            break;
          default:
            layer_norm(item, c);
        }
    }
    return value(plan_.output);
  }

 private:
  static int64_t whole(int width) { return (width + V::width - 1) / V::width * V::width; }
  float* at(int slot, int c) const { return value(slot) + c * kColumns; }

  f operand(const Operand& o, int j, int c, int width) const {
    const float* from = nullptr;
    switch (o.from) {
      case From::kValue:
        return V::load(at(static_cast<int>(o.index), c) + j);
      case From::kRow:
        from = rows_[c];
        break;
      case From::kChain:
        from = chains_[c];
        break;
      case From::kConstant:
        from = plan_.constants();
        break;
      default:
        return V::set(0.0f);
    }
    from += o.index + j;
    if (j + V::width <= width) return V::load(from);
    alignas(64) float last[V::width] = {};
    for (int l = 0; l < width - j; ++l) last[l] = from[l];
    return V::load(last);
  }

  void linear(const Item& item) {
    if (plan_.precision == Precision::kBf16Dot)
      for (int c = 0; c < C; ++c) {
        uint32_t* const words = words_of(at(item.value, c), item.depth[0], words_at(c));
        if (item.second >= 0) words_of(at(item.second, c), item.depth[1], words);
      }
    const int vectors = static_cast<int>(whole(item.width) / V::width);
    int v = 0;
    // Words of pairs come as fast as they are used, of one panel at a time.
    const bool one_panel = NV > 8 && plan_.precision == Precision::kBf16Dot;
    for (; vectors - v >= NV && !one_panel; v += NV) block<NV>(item, v);
    if constexpr (NV > 8)
      for (; vectors - v >= 8; v += 8) block<8>(item, v);
    if constexpr (NV > 4)
      for (; vectors - v >= 4; v += 4) block<4>(item, v);
    if constexpr (NV > 2)
      for (; vectors - v >= 2; v += 2) block<2>(item, v);
    for (; v < vectors; ++v) block<1>(item, v);
    for (int c = 0; c < C; ++c)
      activate<V>(at(item.out, c), int64_t{vectors} * V::width, item.function, item.parameter);
  }

  template <int N>
  __attribute__((noinline)) void block(const Item& item, int v) {
    f sum[C][N];
    ULAM_UNROLL
    for (int c = 0; c < C; ++c) {
      ULAM_UNROLL
      for (int i = 0; i < N; ++i) sum[c][i] = V::set(0.0f);
    }
    const auto add_all = [&](auto weights) {
      add<decltype(weights), N>(item.panels[0], item.depth[0], value(item.value), v, sum);
      if (item.second >= 0) add<decltype(weights), N>(item.panels[1], item.depth[1], value(item.second), v, sum);
    };
    if (plan_.precision == Precision::kBf16Dot)
      add_dots<N>(item, v, sum);
    else if (plan_.precision == Precision::kBf16)
      add_all(Bf16());
    else
      add_all(Float32());
    ULAM_UNROLL
    for (int c = 0; c < C; ++c) {
      ULAM_UNROLL
      for (int i = 0; i < N; ++i) {
        const int j = (v + i) * V::width;
        if (item.a.from != From::kNone) sum[c][i] = V::add(sum[c][i], operand(item.a, j, c, item.width));
        if (item.b.from != From::kNone) sum[c][i] = V::add(sum[c][i], operand(item.b, j, c, item.width));
        V::store(at(item.out, c), kFloat32, j, sum[c][i]);
      }
    }
  }

  // Where the packed weights of N vectors of columns from vector v on lie, for every k. v is a multiple of N, so that
  // they are in one panel, or fill some: vector i is `offset(i)` behind the first of its panel.
  template <class Weights, int N>
  struct Places {
    static constexpr int kEach = kPanel<V> / V::width, kPanels = (N + kEach - 1) / kEach;
    const float* first[kPanels];

    Places(const float* packed, int depth, int v) {
      for (int p = 0; p < kPanels; ++p) {
        const int64_t j = (v + p * kEach) * V::width;
        first[p] = packed + j / kPanel<V> * depth * Weights::stride + Weights::place(j);
      }
    }
    ULAM_HD f load(int64_t k, int i) const {
      return V::load(first[i / kEach] + k * Weights::stride + Weights::offset(i % kEach));
    }
  };

  struct Float32 {
    static constexpr int stride = kPanel<V>;  // of a k, in floats
    static int64_t place(int64_t j) { return j % kPanel<V>; }
    static constexpr int offset(int i) { return i * V::width; }
    template <int N>
    static ULAM_HD void load(const Places<Float32, N>& w, int64_t k, int, f b[N]) {
      ULAM_UNROLL
      for (int i = 0; i < N; ++i) b[i] = w.load(k, i);
    }
  };
  // A word holds column j of 32 in its lower half, and column j + 16 in its upper one.
  struct Bf16 {
    static constexpr int stride = kPanel<V> / 2, half = 16 / V::width;  // vectors in the lower halves
    static int64_t place(int64_t j) { return j % kPanel<V> / 32 * 16 + j % 16; }
    static constexpr int offset(int i) { return i * V::width / 32 * 16 + i * V::width % 16; }
    static f lower(typename V::u word) { return V::as_float(V::template shl<16>(word)); }
    static f upper(typename V::u word) { return V::as_float(V::and_(word, 0xffff0000u)); }
    template <int N>
    static ULAM_HD void load(const Places<Bf16, N>& w, int64_t k, int v, f b[N]) {
      ULAM_UNROLL
      for (int i = 0; i < N; ++i) {
        if (N % (2 * half) == 0 && i / half % 2) continue;
        const typename V::u word = V::bits(w.load(k, i));
        if (N % (2 * half) == 0)
          b[i] = lower(word), b[(i + half) % N] = upper(word);
        else
          b[i] = (v + i) / half % 2 ? upper(word) : lower(word);
      }
    }
  };

  template <class Weights, int N>
  static ULAM_HD void add(const float* packed, int depth, const float* __restrict x, int v, f sum[C][N]) {
    const Places<Weights, N> w(packed, depth, v);
    for (int64_t k = 0; k < depth; ++k) {  // of 64 bits, so that it is part of every address as it is
      f b[N];
      Weights::template load<N>(w, k, v, b);
      ULAM_UNROLL
      for (int c = 0; c < C; ++c) {
        const f a = V::set(x[c * kColumns + k]);
        ULAM_UNROLL
        for (int i = 0; i < N; ++i) sum[c][i] = V::fma(a, b[i], sum[c][i]);
      }
    }
  }

  // The words of a chain's inputs: see network_dots.h.
  uint32_t* words_at(int c) const { return reinterpret_cast<uint32_t*>(at(plan_.slots + 1, c)); }
  static uint32_t* words_of(const float* x, int depth, uint32_t* to) {
    if constexpr (HasDots<V>::value) {
      for (int k = 0; k < depth; k += V::width) V::store_words(x + k, to + k / 2);
      if (depth % 2) to[depth / 2] &= 0xffffu;
      return to + (depth + 1) / 2;
    }
    for (int k = 0; k < depth; k += 2) *to++ = word_of_pair<Portable>(x[k], k + 1 < depth ? x[k + 1] : 0.0f);
    return to;
  }

  template <int N>
  void add_dots(const Item& item, int v, f sum[C][N]) const {
    int64_t first = 0;
    for (int i = 0; i < 2 && item.depth[i] > 0; ++i) {
      const int pairs = (item.depth[i] + 1) / 2;
      dots<N>(item.panels[i], pairs, words_at(0) + first, v, sum);
      first += pairs;
    }
  }

  template <int N>
  static ULAM_HD void dots(const float* packed, int pairs, const uint32_t* __restrict x, int v, f sum[C][N]) {
    const Places<Float32, N> w(packed, pairs, v);
    for (int64_t k = 0; k < pairs; ++k) {
      typename V::u b[N];
      ULAM_UNROLL
      for (int i = 0; i < N; ++i) b[i] = V::bits(w.load(k, i));
      ULAM_UNROLL
      for (int c = 0; c < C; ++c) {
        const typename V::u a = V::set_u(x[c * kColumns + k]);
        ULAM_UNROLL
        for (int i = 0; i < N; ++i) sum[c][i] = dot<V>(sum[c][i], a, b[i]);
      }
    }
  }

  // The sum of term(k, sum so far) in the order of LanesNetwork's.
  template <class Term>
  static float total(int width, const Term& term) {
    alignas(64) float sums[16] = {};
    int k = 0;
    for (; k + 16 <= width; k += 16)
      for (int l = 0; l < 16; ++l) sums[l] = term(k + l, sums[l]);
    for (int l = 0; k + l < width; ++l) sums[l] = term(k + l, sums[l]);
    for (int w = 8; w > 0; w /= 2)
      for (int l = 0; l < w; ++l) sums[l] = sums[l] + sums[l + w];
    return sums[0];
  }

  void layer_norm(const Item& item, int c) {
    const float *const x = at(item.value, c), width = static_cast<float>(item.width);
    const float mean = total(item.width, [=](int k, float sum) { return sum + x[k]; }) / width;
    const float squares =
        total(item.width, [=](int k, float sum) { return Scalar::fma(x[k] - mean, x[k] - mean, sum); });
    const f inverse = V::set(inverse_std<Portable>(squares, width, item.parameter));
    const auto normal = [&](int j) { return V::mul(V::sub(V::load(x + j), V::set(mean)), inverse); };
    if (item.kind == Kind::kLayerNormGradient) return layer_norm_gradient(item, c, inverse, normal);
    for (int j = 0; j < item.width; j += V::width) {
      f y = normal(j);
      const bool scaled = item.a.from != From::kNone, shifted = item.b.from != From::kNone;
      const f weight = operand(item.a, j, c, item.width), bias = operand(item.b, j, c, item.width);
      y = scaled && shifted ? V::fma(y, weight, bias) : scaled ? V::mul(y, weight) : shifted ? V::add(y, bias) : y;
      V::store(at(item.out, c), kFloat32, j, y);
    }
  }

  template <class Normal>
  void layer_norm_gradient(const Item& item, int c, f inverse, const Normal& normal) {
    alignas(64) float h[kColumns], y[kColumns];
    for (int j = 0; j < item.width; j += V::width) {
      const f gradient = operand(item.b, j, c, item.width);
      const bool scaled = item.a.from != From::kNone;
      V::store(h, kFloat32, j, scaled ? V::mul(gradient, operand(item.a, j, c, item.width)) : gradient);
      V::store(y, kFloat32, j, normal(j));
    }
    const float width = static_cast<float>(item.width);
    const f mean = V::set(total(item.width, [&](int k, float sum) { return sum + h[k]; }) / width);
    const float along = total(item.width, [&](int k, float sum) { return Scalar::fma(h[k], y[k], sum); }) / width;
    const f minus = V::set(0.0f - along);
    for (int j = 0; j < item.width; j += V::width)
      V::store(at(item.out, c), kFloat32, j,
               V::mul(inverse, V::fma(minus, V::load(y + j), V::sub(V::load(h + j), mean))));
  }

  const Plan& plan_;
  float* const slots_;
  const float* const* rows_ = nullptr;
  const float* const* chains_ = nullptr;
};

}  // namespace
}  // namespace ulam::cpu
