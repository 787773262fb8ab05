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
    const int vectors = static_cast<int>(whole(item.width) / V::width);
    int v = 0;
    for (; vectors - v >= NV; v += NV) block<NV>(item, v);
    if constexpr (NV > 8)
      for (; vectors - v >= 8; v += 8) block<8>(item, v);
    if constexpr (NV > 4)
      for (; vectors - v >= 4; v += 4) block<4>(item, v);
    if constexpr (NV > 2)
      for (; vectors - v >= 2; v += 2) block<2>(item, v);
    for (; v < vectors; ++v) block<1>(item, v);
  }

  template <int N>
  __attribute__((noinline)) void block(const Item& item, int v) {
    f sum[C][N];
    ULAM_UNROLL
    for (int c = 0; c < C; ++c) {
      ULAM_UNROLL
      for (int i = 0; i < N; ++i) {
        const int j = (v + i) * V::width;
        sum[c][i] = operand(item.a, j, c, item.width);
        if (item.b.from != From::kNone) sum[c][i] = V::add(sum[c][i], operand(item.b, j, c, item.width));
      }
    }
    const auto add_all = [&](auto weights) {
      add<decltype(weights), N>(item.panels[0], item.depth[0], value(item.value), v, sum);
      if (item.second >= 0) add<decltype(weights), N>(item.panels[1], item.depth[1], value(item.second), v, sum);
    };
    if (plan_.bf16)
      add_all(Bf16());
    else
      add_all(Float32());
    ULAM_UNROLL
    for (int c = 0; c < C; ++c) {
      ULAM_UNROLL
      for (int i = 0; i < N; ++i) V::store(at(item.out, c), kFloat32, (v + i) * V::width, sum[c][i]);
    }
    for (int c = 0; c < C; ++c)
      activate<V>(at(item.out, c) + v * V::width, N * V::width, item.function, item.parameter);
  }

  struct Float32 {
    static constexpr int stride = kPanel;  // of a k, in floats
    static int64_t place(int64_t j) { return j % kPanel; }
    template <int N>
    static ULAM_HD void load(const float* const w[N], int k, int, f b[N]) {
      ULAM_UNROLL
      for (int i = 0; i < N; ++i) b[i] = V::load(w[i] + k * stride);
    }
  };
  // A word holds column j of 32 in its lower half, and column j + 16 in its upper one.
  struct Bf16 {
    static constexpr int stride = kPanel / 2, half = 16 / V::width;  // vectors in the lower halves
    static int64_t place(int64_t j) { return j % kPanel / 32 * 16 + j % 16; }
    static f lower(typename V::u word) { return V::as_float(V::template shl<16>(word)); }
    static f upper(typename V::u word) { return V::as_float(V::and_(word, 0xffff0000u)); }
    template <int N>
    static ULAM_HD void load(const float* const w[N], int k, int v, f b[N]) {
      ULAM_UNROLL
      for (int i = 0; i < N; ++i) {
        if (N % (2 * half) == 0 && i / half % 2) continue;
        const typename V::u word = V::bits(V::load(w[i] + k * stride));
        if (N % (2 * half) == 0)
          b[i] = lower(word), b[(i + half) % N] = upper(word);
        else
          b[i] = (v + i) / half % 2 ? upper(word) : lower(word);
      }
    }
  };

  template <class Weights, int N>
  static ULAM_HD void add(const float* packed, int depth, const float* __restrict x, int v, f sum[C][N]) {
    const float* w[N];
    ULAM_UNROLL
    for (int i = 0; i < N; ++i) {
      const int64_t j = (v + i) * V::width;
      w[i] = packed + j / kPanel * depth * Weights::stride + Weights::place(j);
    }
    for (int k = 0; k < depth; ++k) {
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
