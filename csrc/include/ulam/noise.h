// noise-v1: counter-based Gaussian noise with the same bits on every backend.
//
// Philox4x32-10 (Salmon et al. 2011) makes four words from (tag | block, draw, chain); two Box-Muller pairs
// with fixed polynomials make four normals of them. Only correctly rounded fp32 operations are used, and no
// product is added to anything outside an fma, so no compiler can change a bit. Element e of a chain's sample
// is normal e % 4 of block e / 4.
#pragma once

#include <cstdint>

#include "ulam/platform.h"
#include "ulam/scalar.h"

namespace ulam {

constexpr uint64_t kNoiseDomain = 0xB7E151628AED2A6Aull;
constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

struct Words {
  uint32_t w[4];
};

ULAM_HD Words philox4x32_10(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = Scalar::mul_wide(kPhiloxM0, c.w[0]), p1 = Scalar::mul_wide(kPhiloxM1, c.w[2]);
    c = {{Scalar::hi(p1) ^ c.w[1] ^ k0, Scalar::lo(p1), Scalar::hi(p0) ^ c.w[3] ^ k1, Scalar::lo(p0)}};
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return c;
}

// One chain's draw. Only the first counter word differs between its blocks, so half of the first two rounds
// is the same for all of them and is done here, once.
struct Stream {
  uint32_t tag;     // in the top four bits of the first counter word
  uint32_t x2;      // round 1: c3 ^ k1
  uint32_t x0;      // round 2: c1 ^ k0
  uint32_t y2, y3;  // round 2: hi(M0 c0) ^ k1 and lo(M0 c0)
  uint32_t k0, k1;  // the key of round 3
};

ULAM_HD Stream make_stream(uint64_t seed, uint64_t chain, uint64_t draw, uint32_t tag) {
  const uint64_t key = seed ^ kNoiseDomain;
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  const uint32_t epoch = static_cast<uint32_t>(draw >> 32);
  if (epoch != 0) {  // rows beyond 2^28 take a new key
    const Words rekeyed = philox4x32_10({{0xF0000000u, epoch, 0, 0}}, k0, k1);
    k0 = rekeyed.w[0];
    k1 = rekeyed.w[1];
  }
  const uint32_t c1 = static_cast<uint32_t>(draw);
  const uint32_t c2 = static_cast<uint32_t>(chain), c3 = static_cast<uint32_t>(chain >> 32);
  const uint64_t p1 = Scalar::mul_wide(kPhiloxM1, c2);
  const uint64_t p0 = Scalar::mul_wide(kPhiloxM0, Scalar::hi(p1) ^ c1 ^ k0);
  Stream s;
  s.tag = tag << 28;
  s.x2 = c3 ^ k1;
  s.x0 = Scalar::lo(p1) ^ (k0 + kPhiloxW0);
  s.y2 = Scalar::hi(p0) ^ (k1 + kPhiloxW1);
  s.y3 = Scalar::lo(p0);
  s.k0 = k0 + 2 * kPhiloxW0;
  s.k1 = k1 + 2 * kPhiloxW1;
  return s;
}

// The four words of the blocks whose first counter word is c0.
template <class P>
ULAM_HD void philox_words(const Stream& s, typename P::word c0, typename P::word out[4]) {
  typename P::wide p0 = P::mul_wide(kPhiloxM0, c0);
  typename P::word c2 = P::xor2(P::hi(p0), s.x2), c3 = P::lo(p0);
  typename P::wide p1 = P::mul_wide(kPhiloxM1, c2);
  c0 = P::xor2(P::hi(p1), s.x0);
  typename P::word c1 = P::lo(p1);
  c2 = P::xor2(c3, s.y2);
  c3 = P::word_of(s.y3);
  uint32_t k0 = s.k0, k1 = s.k1;
  ULAM_UNROLL
  for (int round = 2; round < 10; ++round) {
    p0 = P::mul_wide(kPhiloxM0, c0);
    p1 = P::mul_wide(kPhiloxM1, c2);
    c0 = P::xor3(P::hi(p1), c1, k0);
    c2 = P::xor3(P::hi(p0), c3, k1);
    c1 = P::lo(p1);
    c3 = P::lo(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

// Uniform on the open interval (0, 1): [2^-33, 1 - 2^-24].
template <class V>
ULAM_HD typename V::f uniform(typename V::u x) {
  return V::fma(V::from_unsigned(x), V::set(0x1.fffffep-33f), V::set(0x1p-33f));
}

// 2^doublings sqrt(-2 ln uniform(x)), in as many operations: a power of two in the coefficients changes exponents
// alone.
template <class V, int doublings = 0>
ULAM_HD typename V::f radius(typename V::u x) {
  using f = typename V::f;
  constexpr float k = static_cast<float>(1 << 2 * doublings);
  const typename V::u i = V::bits(uniform<V>(x));
  const typename V::u e = V::and_(V::sub_u(i, V::set_u(0x3f2aaaabu)), 0xff800000u);
  const f m = V::sub(V::as_float(V::sub_u(i, e)), V::set(1.0f));
  f q = V::set(k * -0x1.1f28p-2f);
  q = V::fma(q, m, V::set(k * 0x1.3b0c5cp-2f));
  q = V::fma(q, m, V::set(k * -0x1.1ea89ap-2f));
  q = V::fma(q, m, V::set(k * 0x1.5038p-2f));
  q = V::fma(q, m, V::set(k * -0x1.99d3bp-2f));
  q = V::fma(q, m, V::set(k * 0x1.00144ep-1f));
  q = V::fma(q, m, V::set(k * -0x1.5554fcp-1f));
  q = V::fma(q, m, V::set(k * 0x1.ffffd6p-1f));
  q = V::fma(q, m, V::set(k * -0x1p+1f));
  return V::sqrt(V::fma(V::from_signed(e), V::set(k * -0x1.62e43p-23f), V::mul(q, m)));
}

// A point of the unit circle, its angle uniform.
template <class V>
ULAM_HD void circle(typename V::u x, typename V::f& cosine, typename V::f& sine) {
  using f = typename V::f;
  const f v = V::fma(V::from_signed(V::template shl<1>(x)), V::set(0x1p-31f), V::set(0x1p-31f));
  const f w = V::mul(v, v);
  f s = V::set(0x1.3912a8p-13f);
  s = V::fma(s, w, V::set(-0x1.31fbf4p-8f));
  s = V::fma(s, w, V::set(0x1.466504p-4f));
  s = V::fma(s, w, V::set(-0x1.4abba2p-1f));
  s = V::fma(s, w, V::set(0x1.921fb4p+0f));
  sine = V::mul(s, v);
  f c = V::set(-0x1.889fc6p-16f);
  c = V::fma(c, w, V::set(0x1.e0a1e2p-11f));
  c = V::fma(c, w, V::set(-0x1.55cd26p-6f));
  c = V::fma(c, w, V::set(0x1.03c1d4p-2f));
  c = V::fma(c, w, V::set(-0x1.3bd3ccp+0f));
  c = V::fma(c, w, V::set(0x1p+0f));
  cosine = V::as_float(V::xor_(V::bits(c), V::and_(x, 0x80000000u)));
}

// Two normals of two words, 2^doublings times as large.
template <class V, int doublings = 0>
ULAM_HD void box_muller_pair(const typename V::u w[2], typename V::f z[2]) {
  typename V::f c, s;
  const typename V::f r = radius<V, doublings>(w[0]);
  circle<V>(w[1], c, s);
  z[0] = V::mul(r, c);
  z[1] = V::mul(r, s);
}

// Four normals of the four words of a block, likewise.
template <class V, int doublings = 0>
ULAM_HD void box_muller(const typename V::u w[4], typename V::f z[4]) {
  box_muller_pair<V, doublings>(w, z);
  box_muller_pair<V, doublings>(w + 2, z + 2);
}

}  // namespace ulam
