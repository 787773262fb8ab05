// noise-v1 side by side: a lane is a chain. Part of mcmc_run.h.
#pragma once

#include "groups.h"
#include "ulam/mcmc.h"

namespace ulam::cpu {
namespace {

// The words of V::width chains from `first` on, each of its own seed, number and draw; lanes beyond the last chain
// repeat it. Philox works on the even and the odd chains of two blocks at a time, so that no product is repacked, with
// the round keys read from memory. What does not depend on the block is done once a draw: see Stream in ulam/noise.h.
template <class V, int W = V::width>
class ChainNoise {
  static constexpr int H = W / 2;
  using half = typename V::half;

 public:
  ChainNoise(const Ids& ids, int64_t first, int64_t chains) {
    for (int l = 0; l < W; ++l) {
      const int64_t b = first + l < chains ? first + l : chains - 1;
      seed_[l] = static_cast<uint64_t>(ids.seed[b]);
      chain_[l] = static_cast<uint64_t>(ids.chain[b]);
      draw_[l % 2][l / 2] = static_cast<uint64_t>(ids.draw[b]);
    }
    rekey(0);
  }

  // Moves to the draws that are `ahead` of the first.
  void start(uint64_t ahead) {
    if (ahead >= end_) rekey(ahead);
    for (int p = 0; p < 2; ++p) {
      const half draw = V::plus(V::load_half(draw_[p]), V::broadcast(ahead));
      const half c0 = V::xor2(V::load_half(c0_[p]), draw);
      const half p0 = V::product(V::broadcast(kPhiloxM0), c0);
      V::store_half(y2_[p], V::xor2(V::upper(p0), V::load_half(keys_[1][1][p])));
      V::store_half(y3_[p], p0);
    }
  }

  // The words of two blocks, whose first counter words are a and b.
  void words(uint32_t a, uint32_t b, typename V::u from_a[4], typename V::u from_b[4]) const {
    const uint64_t pa = Scalar::mul_wide(kPhiloxM0, a), pb = Scalar::mul_wide(kPhiloxM0, b);
    const half m0 = V::broadcast(kPhiloxM0), m1 = V::broadcast(kPhiloxM1);
    half c0[4], c1[4], c2[4], c3[4];  // a of even chains, a of odd ones, b of even ones, b of odd ones
    ULAM_UNROLL
    for (int i = 0; i < 4; ++i) {
      const uint64_t p = i < 2 ? pa : pb;
      const half p1 = V::product(m1, V::xor2(V::broadcast(p >> 32), V::load_half(x2_[i % 2])));
      c0[i] = V::xor2(V::upper(p1), V::load_half(x0_[i % 2]));
      c1[i] = p1;
      c2[i] = V::xor2(V::broadcast(p & 0xffffffffu), V::load_half(y2_[i % 2]));
      c3[i] = V::load_half(y3_[i % 2]);
    }
    ULAM_UNROLL
    for (int round = 2; round < 10; ++round) {
      ULAM_UNROLL
      for (int i = 0; i < 4; ++i) {
        const half p0 = V::product(m0, c0[i]), p1 = V::product(m1, c2[i]);
        c0[i] = V::xor3(V::upper(p1), c1[i], V::load_half(keys_[round][0][i % 2]));
        c2[i] = V::xor3(V::upper(p0), c3[i], V::load_half(keys_[round][1][i % 2]));
        c1[i] = p1;
        c3[i] = p0;
      }
    }
    from_a[0] = V::merged(c0[0], c0[1]), from_b[0] = V::merged(c0[2], c0[3]);
    from_a[1] = V::merged(c1[0], c1[1]), from_b[1] = V::merged(c1[2], c1[3]);
    from_a[2] = V::merged(c2[0], c2[1]), from_b[2] = V::merged(c2[2], c2[3]);
    from_a[3] = V::merged(c3[0], c3[1]), from_b[3] = V::merged(c3[2], c3[3]);
  }

 private:
  // The keys of the draws that are `ahead` of the first, which hold until one of them passes a multiple of 2^32.
  void rekey(uint64_t ahead) {
    uint64_t left = 1ull << 32;
    for (int l = 0; l < W; ++l) {
      const int p = l % 2, i = l / 2;
      const uint64_t draw = draw_[p][i] + ahead, key = seed_[l] ^ kNoiseDomain;
      const uint64_t until = (1ull << 32) - (draw & 0xffffffffu);
      left = until < left ? until : left;
      uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
      if (draw >> 32) {
        const Words w = philox4x32_10({{0xF0000000u, static_cast<uint32_t>(draw >> 32), 0, 0}}, k0, k1);
        k0 = w.w[0];
        k1 = w.w[1];
      }
      const uint64_t p1 = Scalar::mul_wide(kPhiloxM1, static_cast<uint32_t>(chain_[l]));
      x2_[p][i] = static_cast<uint32_t>(chain_[l] >> 32) ^ k1;
      c0_[p][i] = (p1 >> 32) ^ k0;
      for (int round = 0; round < 10; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
        keys_[round][0][p][i] = k0;
        keys_[round][1][p][i] = k1;
      }
      x0_[p][i] = (p1 & 0xffffffffu) ^ keys_[1][0][p][i];
    }
    end_ = ahead + left;
  }

  alignas(64) uint64_t keys_[10][2][2][H];
  alignas(64) uint64_t draw_[2][H], c0_[2][H], x2_[2][H], x0_[2][H], y2_[2][H], y3_[2][H];
  uint64_t seed_[W], chain_[W], end_;
};

// One chain.
template <class V>
class ChainNoise<V, 1> {
 public:
  ChainNoise(const Ids& ids, int64_t b, int64_t)
      : seed_(static_cast<uint64_t>(ids.seed[b])),
        chain_(static_cast<uint64_t>(ids.chain[b])),
        draw_(static_cast<uint64_t>(ids.draw[b])) {}
  void start(uint64_t ahead) { stream_ = make_stream(seed_, chain_, draw_ + ahead, 0); }
  void words(uint32_t a, uint32_t b, uint32_t from_a[4], uint32_t from_b[4]) const {
    philox_words<Scalar>(stream_, a, from_a);
    philox_words<Scalar>(stream_, b, from_b);
  }

 private:
  uint64_t seed_, chain_, draw_;
  Stream stream_;
};

// z[i] holds element i of the chains, i < 4 blocks, counted from block `first` on; z has room for an even number of
// blocks. With `tests`, the return value is sqrt(-2 ln u) of the Metropolis test's u.
template <class V>
inline typename V::f normals_of(const ChainNoise<V>& noise, int blocks, bool tests, float (*z)[V::width],
                                uint32_t first = 0) {
  typename V::u w[2][4];
  typename V::f r = V::set(0.0f);
  const int count = blocks + tests;
  for (int j = 0; j < count; j += 2) {
    const auto counter = [=](int k) { return k == blocks ? kAcceptTag << 28 : first + static_cast<uint32_t>(k); };
    noise.words(counter(j), counter(j + 1), w[0], w[1]);
    for (int k = j; k < j + 2 && k < count; ++k) {
      typename V::f four[4];
      if (k == blocks) {
        r = radius<V>(w[k - j][0]);
        break;
      }
      box_muller<V>(w[k - j], four);
      for (int i = 0; i < 4; ++i) V::store(z[4 * k + i], kFloat32, 0, four[i]);
    }
  }
  return r;
}

}  // namespace
}  // namespace ulam::cpu
