// A network's values for a tile of chains, a lane a chain: value [width][lanes]. Part of kernels_impl.h.
#pragma once

#include "groups.h"
#include "network_dots.h"
#include "network_plan.h"
#include "together.h"

namespace ulam::cpu {
namespace {

template <class V>
inline void activate(float* p, int64_t count, int function, float parameter) {
  const auto all = [&](auto known) {
    int64_t i = 0;
    for (; i + FourOf<V>::width <= count; i += FourOf<V>::width)
      FourOf<V>::store(p, kFloat32, i, activated<FourOf<V>>(known, parameter, FourOf<V>::load(p + i)));
    for (; i < count; i += V::width) V::store(p, kFloat32, i, activated<V>(known, parameter, V::load(p + i)));
  };
  switch (static_cast<Activation>(function)) {
#define ULAM_KNOWN(f) \
  case Activation::f: \
    return all(std::integral_constant<Activation, Activation::f>());
    ULAM_KNOWN(kSilu)
    ULAM_KNOWN(kRelu)
    ULAM_KNOWN(kGelu)
    ULAM_KNOWN(kGeluTanh)
    ULAM_KNOWN(kTanh)
    ULAM_KNOWN(kSigmoid)
    ULAM_KNOWN(kMish)
    ULAM_KNOWN(kSoftplus)
    ULAM_KNOWN(kLeakyRelu)
    ULAM_KNOWN(kElu)
    ULAM_KNOWN(kSiluSlope)
    ULAM_KNOWN(kReluSlope)
    ULAM_KNOWN(kGeluSlope)
    ULAM_KNOWN(kGeluTanhSlope)
    ULAM_KNOWN(kTanhSlope)
    ULAM_KNOWN(kSigmoidSlope)
    ULAM_KNOWN(kMishSlope)
    ULAM_KNOWN(kLeakyReluSlope)
    ULAM_KNOWN(kEluSlope)
#undef ULAM_KNOWN
    default:
      return;
  }
}

template <class V>
inline typename V::f binary(int function, typename V::f a, typename V::f b) {
  return function == 0 ? V::add(a, b) : function == 1 ? V::sub(a, b) : V::mul(a, b);
}

// 1 / sqrt(var + eps) of sums that are in place.
template <class V>
inline typename V::f inverse_std(typename V::f sum, float width, float eps) {
  const typename V::f variance = V::div(sum, V::set(width));
  return V::div(V::set(1.0f), V::root(V::add(variance, V::set(eps))));
}

// M vectors of lanes side by side. A block of C columns needs M (1 + C) + 1 registers.
template <class V, int M>
class LanesNetwork {
 public:
  static constexpr int lanes = M * V::width;
  using f = typename V::f;

  LanesNetwork(const Plan& plan, float* slots) : plan_(plan), slots_(slots) {}

  float* value(int slot) const { return slots_ + static_cast<int64_t>(slot) * plan_.max_width * lanes; }

  // row: [row_width] of all lanes, or [row_width][lanes] where they `differ`; chain: [chain_width][lanes].
  const float* evaluate(const float* row, bool differ, const float* chain) {
    row_ = row;
    differ_ = differ;
    chain_ = chain;
    for (int k = 0; k < plan_.size; ++k) {
      const Item& item = plan_.items[k];
      switch (item.kind) {
        case Kind::kLinear:
          linear(item);
          break;
        case Kind::kUnary:
          std::memcpy(value(item.out), value(item.value), sizeof(float) * item.width * lanes);
          activate<V>(value(item.out), int64_t{item.width} * lanes, item.function, item.parameter);
          break;
        case Kind::kBinary:
          for (int j = 0; j < item.width; ++j)
            for (int m = 0; m < M; ++m)
              put(item.out, j, m, binary<V>(item.function, operand(item.a, j, m), operand(item.b, j, m)));
          break;
        default:
          for (int m = 0; m < M; ++m) layer_norm(item, m);
      }
    }
    return value(plan_.output);
  }

 private:
  f get(int slot, int64_t j, int m) const { return V::load(value(slot) + j * lanes + m * V::width); }
  void put(int slot, int64_t j, int m, f x) { V::store(value(slot), kFloat32, j * lanes + m * V::width, x); }

  // use(of), where of(j, m) is a vector of the operand.
  template <class Use>
  ULAM_HD auto with_operand(const Operand& o, const Use& use) const {
    switch (o.from) {
      case From::kValue:
        return use([&](int64_t j, int m) { return get(static_cast<int>(o.index), j, m); });
      case From::kRow:
        if (differ_) return use([&](int64_t j, int m) { return V::load(row_ + (o.index + j) * lanes + m * V::width); });
        return use([&](int64_t j, int) { return V::set(row_[o.index + j]); });
      case From::kChain:
        return use([&](int64_t j, int m) { return V::load(chain_ + (o.index + j) * lanes + m * V::width); });
      case From::kConstant:
        return use([&](int64_t j, int) { return V::set(plan_.constants()[o.index + j]); });
      default:
        return use([](int64_t, int) { return V::set(0.0f); });
    }
  }
  f operand(const Operand& o, int64_t j, int m) const {
    return with_operand(o, [=](const auto& of) { return of(j, m); });
  }

  void linear(const Item& item) {
    int j = 0;
    if (plan_.precision == Precision::kBf16Dot) {
      float* const words = words_of(value(item.value), item.depth[0], value(plan_.slots + 1));
      if (item.second >= 0) words_of(value(item.second), item.depth[1], words);
    }
    if constexpr (columns == 12)
      for (; item.width - j > 6; j += 12) block<12>(item, j);
    for (; item.width - j > 4; j += 6) block<6>(item, j);
    for (; item.width - j > 2; j += 4) block<4>(item, j);
    for (; item.width - j > 0; j += 2) block<2>(item, j);
    activate<V>(value(item.out), int64_t{item.width} * lanes, item.function, item.parameter);
  }

  template <int C>
  __attribute__((noinline)) void block(const Item& item, int j) {
    f sum[M][C];
    const int count = item.width - j < C ? item.width - j : C;
    ULAM_UNROLL
    for (int c = 0; c < C; ++c) {
      ULAM_UNROLL
      for (int m = 0; m < M; ++m) sum[m][c] = V::set(0.0f);
    }
    if (plan_.precision == Precision::kBf16Dot)
      add_dots<C>(item, j, sum);
    else
      add<C>(item.narrow[0], item.depth[0], value(item.value), j, sum);
    if (plan_.precision != Precision::kBf16Dot && item.second >= 0)
      add<C>(item.narrow[1], item.depth[1], value(item.second), j, sum);
    float* const out = value(item.out) + static_cast<int64_t>(j) * lanes;
    const auto finish = [&](auto columns) {
      add_operand<C>(item.a, j, columns, sum);
      add_operand<C>(item.b, j, columns, sum);
      ULAM_UNROLL
      for (int c = 0; c < C; ++c) {
        ULAM_UNROLL
        for (int m = 0; m < M; ++m)
          if (c < columns) V::store(out, kFloat32, c * lanes + m * V::width, sum[m][c]);
      }
    };
    if (count == C)
      finish(std::integral_constant<int, C>());
    else
      finish(count);
  }

  // To the first columns of a block from j on.
  template <int C, class Columns>
  ULAM_HD void add_operand(const Operand& o, int64_t j, Columns columns, f sum[M][C]) const {
    if (o.from == From::kNone) return;
    with_operand(o, [=](const auto& of) {
      ULAM_UNROLL
      for (int c = 0; c < C; ++c) {
        ULAM_UNROLL
        for (int m = 0; m < M; ++m)
          if (c < columns) sum[m][c] = V::add(sum[m][c], of(j + c, m));
      }
    });
  }

  template <int C>
  static ULAM_HD void add(const float* packed, int depth, const float* __restrict x, int j, f sum[M][C]) {
    const float* __restrict w = packed + static_cast<int64_t>(j / kNarrow) * depth * kNarrow + j % kNarrow;
    for (int k = 0; k < depth; ++k, w += kNarrow, x += lanes) {
      f a[M];
      ULAM_UNROLL
      for (int m = 0; m < M; ++m) a[m] = V::load(x + m * V::width);
      ULAM_UNROLL
      for (int c = 0; c < C; ++c) {
        const f b = V::set(w[c]);
        ULAM_UNROLL
        for (int m = 0; m < M; ++m) sum[m][c] = V::fma(a[m], b, sum[m][c]);
      }
    }
  }

  // Pairs of a value's numbers as words, [pairs][lanes]; returns where the next begin.
  static float* words_of(const float* x, int depth, float* to) {
    for (int k = 0; k < depth; k += 2, x += 2 * lanes, to += lanes) {
      for (int m = 0; m < M; ++m) {
        const f odd = k + 1 < depth ? V::load(x + lanes + m * V::width) : V::set(0.0f);
        V::store(to, kFloat32, m * V::width, V::as_float(word_of_pair<V>(V::load(x + m * V::width), odd)));
      }
    }
    return to;
  }

  template <int C>
  void add_dots(const Item& item, int j, f sum[M][C]) const {
    const float* words = value(plan_.slots + 1);
    for (int i = 0; i < 2 && item.depth[i] > 0; ++i) {
      const int pairs = (item.depth[i] + 1) / 2;
      dots<C>(item.narrow[i], pairs, words, j, sum);
      words += static_cast<int64_t>(pairs) * lanes;
    }
  }

  template <int C>
  static ULAM_HD void dots(const float* packed, int pairs, const float* __restrict x, int j, f sum[M][C]) {
    const float* __restrict w = packed + static_cast<int64_t>(j / kNarrow) * pairs * kNarrow + j % kNarrow;
    for (int k = 0; k < pairs; ++k, w += kNarrow, x += lanes) {
      typename V::u a[M];
      ULAM_UNROLL
      for (int m = 0; m < M; ++m) a[m] = V::bits(V::load(x + m * V::width));
      ULAM_UNROLL
      for (int c = 0; c < C; ++c) {
        const typename V::u b = V::bits(V::set(w[c]));
        ULAM_UNROLL
        for (int m = 0; m < M; ++m) sum[m][c] = dot<V>(sum[m][c], a[m], b);
      }
    }
  }

  // The sum of term(k, sum so far): by lanes k mod 16, then in a tree.
  template <class Term>
  static f total(int width, const Term& term) {
    f sums[16];
    for (auto& sum : sums) sum = V::set(0.0f);
    for (int k = 0; k < width; ++k) sums[k % 16] = term(k, sums[k % 16]);
    for (int w = 8; w > 0; w /= 2)
      for (int l = 0; l < w; ++l) sums[l] = V::add(sums[l], sums[l + w]);
    return sums[0];
  }

  void layer_norm(const Item& item, int m) {
    const float width = static_cast<float>(item.width);
    const auto x = [&](int k) { return get(item.value, k, m); };
    const f mean = V::div(total(item.width, [&](int k, f sum) { return V::add(sum, x(k)); }), V::set(width));
    const f squares = total(item.width, [&](int k, f sum) {
      const f d = V::sub(x(k), mean);
      return V::fma(d, d, sum);
    });
    const f inverse = inverse_std<V>(squares, width, item.parameter);
    const auto normal = [&](int k) { return V::mul(V::sub(x(k), mean), inverse); };
    if (item.kind == Kind::kLayerNormGradient) return layer_norm_gradient(item, m, inverse, normal);
    for (int j = 0; j < item.width; ++j) {
      f y = normal(j);
      const bool scaled = item.a.from != From::kNone, shifted = item.b.from != From::kNone;
      if (scaled && shifted)
        y = V::fma(y, operand(item.a, j, m), operand(item.b, j, m));
      else if (scaled)
        y = V::mul(y, operand(item.a, j, m));
      else if (shifted)
        y = V::add(y, operand(item.b, j, m));
      put(item.out, j, m, y);
    }
  }

  template <class Normal>
  void layer_norm_gradient(const Item& item, int m, f inverse, const Normal& normal) {
    const f width = V::set(static_cast<float>(item.width));
    const auto h = [&](int k) {
      const f gradient = operand(item.b, k, m);
      return item.a.from == From::kNone ? gradient : V::mul(gradient, operand(item.a, k, m));
    };
    const f mean = V::div(total(item.width, [&](int k, f sum) { return V::add(sum, h(k)); }), width);
    const f along = V::div(total(item.width, [&](int k, f sum) { return V::fma(h(k), normal(k), sum); }), width);
    const f minus = V::sub(V::set(0.0f), along);
    for (int j = 0; j < item.width; ++j)
      put(item.out, j, m, V::mul(inverse, V::fma(minus, normal(j), V::sub(h(j), mean))));
  }

  // AVX2 has half the registers of AVX-512. A block lies in one panel.
  static constexpr int columns = V::width >= 16 ? 12 : 12 / M;
  static_assert(kNarrow % columns == 0 && columns % 6 == 0, "blocks of 6, and 4 behind them");

  const Plan& plan_;
  float* const slots_;
  const float *row_ = nullptr, *chain_ = nullptr;
  bool differ_ = false;
};

}  // namespace
}  // namespace ulam::cpu
