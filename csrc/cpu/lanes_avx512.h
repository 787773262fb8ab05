// AVX-512: sixteen lanes. Philox works on two halves of eight 64-bit products (even and odd lanes), so that
// no product is ever repacked. Lane 4q + p holds block 4p + q: then a 4x4 transpose inside the 128-bit
// quarters leaves the normals in memory order.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "together.h"
#include "ulam/noise.h"

namespace ulam::cpu {
namespace {

struct Avx512 {
  static constexpr int width = 16, vectors = 8;
  using f = __m512;
  using u = __m512i;
  struct word {  // words in the low halves of 64 bits each; the high halves are ignored
    __m512i v[4];
  };
  using wide = word;  // products of 64 bits

  static inline __m512i broadcast(uint64_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); }
  static inline wide mul_wide(uint32_t a, word b) {
    return together([=](__m512i x) { return _mm512_mul_epu32(broadcast(a), x); }, b);
  }
  static inline word hi(wide p) {
    return together([](__m512i x) { return _mm512_srli_epi64(x, 32); }, p);
  }
  static inline word lo(wide p) { return p; }
  static inline word word_of(uint32_t x) { return {broadcast(x), broadcast(x), broadcast(x), broadcast(x)}; }
  static inline word xor2(word a, uint32_t b) {
    return together([=](__m512i x) { return _mm512_xor_si512(x, broadcast(b)); }, a);
  }
  static inline word xor3(word a, word b, uint32_t c) {
    return together([=](__m512i x, __m512i y) { return _mm512_ternarylogic_epi64(x, y, broadcast(c), 0x96); }, a, b);
  }

  static inline void words(const Stream& s, uint32_t block, u w[vectors]) {
    const __m512i even = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), base = broadcast(s.tag | block);
    const auto plus = [=](int k) { return _mm512_add_epi64(base, _mm512_add_epi64(even, broadcast(k))); };
    word p[4];
    philox_words<Avx512>(s, {plus(0), plus(4), plus(16), plus(20)}, p);
    for (int k = 0; k < vectors; ++k) {  // the low halves of v[1], moved up into the odd lanes
      const __m512i* const v = p[k % 4].v + k / 4 * 2;
      w[k] = _mm512_mask_blend_epi32(0xaaaa, v[0], _mm512_slli_epi64(v[1], 32));
    }
  }
  static inline void interleave(f z[4]) {
    const f a = _mm512_unpacklo_ps(z[0], z[1]), b = _mm512_unpackhi_ps(z[0], z[1]);
    const f c = _mm512_unpacklo_ps(z[2], z[3]), d = _mm512_unpackhi_ps(z[2], z[3]);
    z[0] = _mm512_shuffle_ps(a, c, 0x44);
    z[1] = _mm512_shuffle_ps(a, c, 0xee);
    z[2] = _mm512_shuffle_ps(b, d, 0x44);
    z[3] = _mm512_shuffle_ps(b, d, 0xee);
  }

  static inline f set(float x) { return _mm512_set1_ps(x); }
  static inline u set_u(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static inline f fma(f a, f b, f c) { return _mm512_fmadd_ps(a, b, c); }
  static inline f mul(f a, f b) { return _mm512_mul_ps(a, b); }
  static inline f sub(f a, f b) { return _mm512_sub_ps(a, b); }
  static inline f sqrt(f a) { return _mm512_sqrt_ps(a); }
  static inline f from_unsigned(u x) { return _mm512_cvtepu32_ps(x); }
  static inline f from_signed(u x) { return _mm512_cvtepi32_ps(x); }
  static inline u rounded(f x) { return _mm512_cvtps_epi32(x); }
  static inline u bits(f x) { return _mm512_castps_si512(x); }
  static inline f as_float(u x) { return _mm512_castsi512_ps(x); }
  static inline u and_(u a, uint32_t b) { return _mm512_and_si512(a, set_u(b)); }
  static inline u xor_(u a, u b) { return _mm512_xor_si512(a, b); }
  static inline u add_u(u a, u b) { return _mm512_add_epi32(a, b); }
  static inline u sub_u(u a, u b) { return _mm512_sub_epi32(a, b); }
  template <int n>
  static inline u shl(u a) {
    return _mm512_slli_epi32(a, n);
  }
  static inline f clip(f x, f lo, f hi) {
    const f low = _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask(x, lo, _CMP_LT_OQ), lo);
    return _mm512_mask_mov_ps(low, _mm512_cmp_ps_mask(x, hi, _CMP_GT_OQ), hi);
  }
  static inline f at_least(f x, f lo) { return _mm512_max_ps(lo, x); }  // the second operand where one is NaN
  static inline f where_equal(f x, float y, f then, f otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(x, set(y), _CMP_EQ_OQ), then);
  }
  // Which lanes are greater as signed numbers, a bit each. The move is explicit because gcc (12, at least) merges the
  // widening of a mask into the comparison: such a mask, when spilled, is stored as 16 bits and read as 32, with stray
  // bits.
  static inline uint32_t above(u a, uint32_t b) {
    uint32_t lanes;
    asm("kmovw %1, %0" : "=r"(lanes) : "k"(_mm512_cmpgt_epi32_mask(a, set_u(b))));
    return lanes;
  }
  static inline f nan_or(f x, f y) { return _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x); }

  static inline f load(const void* p, DType type, int64_t i) {
    if (type == kFloat32) return _mm512_loadu_ps(static_cast<const float*>(p) + i);
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(p) + i));
    return type == kBFloat16 ? widen_bfloat16(h) : _mm512_cvtph_ps(h);
  }
  // Stores, and returns the value that was stored.
  static inline f store(void* p, DType type, int64_t i, f x) {
    if (type == kFloat32) {
      _mm512_storeu_ps(static_cast<float*>(p) + i, x);
      return x;
    }
    const __m256i h = type == kBFloat16 ? round_bfloat16(x) : _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(static_cast<uint16_t*>(p) + i), h);
    return type == kBFloat16 ? widen_bfloat16(h) : _mm512_cvtph_ps(h);
  }

  // Sums over a chain, and the normal distribution's tail.
  static inline f add(f a, f b) { return _mm512_add_ps(a, b); }
  static inline f div(f a, f b) { return _mm512_div_ps(a, b); }
  static inline f less(f a, f b, f then, f otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), then);
  }
  static inline bool any(f a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
  static inline f load(const float* p) { return _mm512_loadu_ps(p); }
  static inline void accumulate(double* lanes, f x) {
    const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
    const __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
    _mm512_store_pd(lanes, _mm512_add_pd(_mm512_load_pd(lanes), low));
    _mm512_store_pd(lanes + 8, _mm512_add_pd(_mm512_load_pd(lanes + 8), high));
  }

  // Sums of whole numbers: 64 bits for two lanes of 32.
  using whole = __m512i;
  static inline whole add_lanes(whole sum, u x) {
    return _mm512_add_epi64(_mm512_add_epi64(sum, _mm512_srli_epi64(x, 32)),
                            _mm512_and_si512(x, broadcast(0xffffffff)));
  }

  // Four chains' Philox in step.
  using half = __m512i;  // every other chain's 32 bits, in 64 each; the upper ones are ignored
  static inline half load_half(const uint64_t* p) { return _mm512_load_si512(reinterpret_cast<const __m512i*>(p)); }
  static inline void store_half(uint64_t* p, half x) { _mm512_store_si512(reinterpret_cast<__m512i*>(p), x); }
  static inline half product(half a, half b) { return _mm512_mul_epu32(a, b); }
  static inline half plus(half a, half b) { return _mm512_add_epi64(a, b); }
  static inline half upper(half a) { return _mm512_srli_epi64(a, 32); }
  static inline half xor2(half a, half b) { return _mm512_xor_si512(a, b); }
  static inline half xor3(half a, half b, half c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static inline u merged(half even, half odd) {
    return _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
  }
  static inline f root(f a) { return _mm512_sqrt_ps(a); }

  // mt19937 and torch's Box-Muller.
  static constexpr int groups = 2;
  template <int n>
  static inline u shr(u a) {
    return _mm512_srli_epi32(a, n);
  }
  static inline f choose(u top, f a, f b) { return _mm512_mask_mov_ps(b, _mm512_movepi32_mask(top), a); }
  static inline void load(const uint32_t* p, u& first, u& second) {
    const u a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 16);
    first = _mm512_shuffle_i32x4(a, b, 0x44);
    second = _mm512_shuffle_i32x4(a, b, 0xee);
  }
  static inline void store(uint32_t* p, f first, f second) {
    const f a = _mm512_shuffle_f32x4(first, second, 0x44), b = _mm512_shuffle_f32x4(first, second, 0xee);
    _mm512_storeu_ps(p, a);
    _mm512_storeu_ps(p + 16, b);
  }

 private:
  static inline f widen_bfloat16(__m256i h) { return as_float(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
  static inline __m256i round_bfloat16(f x) {
    const u i = bits(x), odd = _mm512_and_si512(_mm512_srli_epi32(i, 16), set_u(1));
    const u rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(i, set_u(0x7fff)), odd), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, nan, set_u(0x7fc0)));
  }
};

}  // namespace
}  // namespace ulam::cpu
