// AVX2 with FMA and F16C: eight lanes, arranged like the sixteen of lanes_avx512.h. Lane 4q + p holds block
// 2p + q.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "together.h"
#include "ulam/noise.h"

namespace ulam::cpu {
namespace {

struct Avx2 {
  static constexpr int width = 8, vectors = 8;
  using f = __m256;
  using u = __m256i;
  struct word {  // words in the low halves of 64 bits each; the high halves are ignored
    __m256i v[4];
  };
  using wide = word;  // products of 64 bits

  static inline __m256i broadcast(uint64_t x) { return _mm256_set1_epi64x(static_cast<int64_t>(x)); }
  static inline wide mul_wide(uint32_t a, word b) {
    return together([=](__m256i x) { return _mm256_mul_epu32(broadcast(a), x); }, b);
  }
  static inline word hi(wide p) {
    return together([](__m256i x) { return _mm256_srli_epi64(x, 32); }, p);
  }
  static inline word lo(wide p) { return p; }
  static inline word word_of(uint32_t x) { return {broadcast(x), broadcast(x), broadcast(x), broadcast(x)}; }
  static inline word xor2(word a, uint32_t b) {
    return together([=](__m256i x) { return _mm256_xor_si256(x, broadcast(b)); }, a);
  }
  static inline word xor3(word a, word b, uint32_t c) {
    return together([=](__m256i x, __m256i y) { return _mm256_xor_si256(x, _mm256_xor_si256(y, broadcast(c))); }, a, b);
  }

  // Even lanes in w[0..3] of blocks 0 to 7, then of blocks 8 to 15.
  static inline void words(const Stream& s, uint32_t block, u w[vectors]) {
    const __m256i even = _mm256_setr_epi64x(0, 4, 1, 5), base = broadcast(s.tag | block);
    const auto plus = [=](int k) { return _mm256_add_epi64(base, _mm256_add_epi64(even, broadcast(k))); };
    word p[4];
    philox_words<Avx2>(s, {plus(0), plus(2), plus(8), plus(10)}, p);
    for (int k = 0; k < vectors; ++k) {
      const __m256i* const v = p[k % 4].v + k / 4 * 2;
      w[k] = _mm256_blend_epi32(v[0], _mm256_slli_epi64(v[1], 32), 0xaa);
    }
  }
  static inline void interleave(f z[4]) {
    const f a = _mm256_unpacklo_ps(z[0], z[1]), b = _mm256_unpackhi_ps(z[0], z[1]);
    const f c = _mm256_unpacklo_ps(z[2], z[3]), d = _mm256_unpackhi_ps(z[2], z[3]);
    z[0] = _mm256_shuffle_ps(a, c, 0x44);
    z[1] = _mm256_shuffle_ps(a, c, 0xee);
    z[2] = _mm256_shuffle_ps(b, d, 0x44);
    z[3] = _mm256_shuffle_ps(b, d, 0xee);
  }

  static inline f set(float x) { return _mm256_set1_ps(x); }
  static inline u set_u(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static inline f fma(f a, f b, f c) { return _mm256_fmadd_ps(a, b, c); }
  static inline f mul(f a, f b) { return _mm256_mul_ps(a, b); }
  static inline f sub(f a, f b) { return _mm256_sub_ps(a, b); }
  static inline f sqrt(f a) { return _mm256_sqrt_ps(a); }
  // Both halves are exact, and their sum is rounded once.
  static inline f from_unsigned(u x) {
    const f high = _mm256_cvtepi32_ps(_mm256_srli_epi32(x, 16)), low = _mm256_cvtepi32_ps(and_(x, 0xffffu));
    return fma(high, set(65536.0f), low);
  }
  static inline f from_signed(u x) { return _mm256_cvtepi32_ps(x); }
  static inline u rounded(f x) { return _mm256_cvtps_epi32(x); }
  static inline u bits(f x) { return _mm256_castps_si256(x); }
  static inline f as_float(u x) { return _mm256_castsi256_ps(x); }
  static inline u and_(u a, uint32_t b) { return _mm256_and_si256(a, set_u(b)); }
  static inline u xor_(u a, u b) { return _mm256_xor_si256(a, b); }
  static inline u add_u(u a, u b) { return _mm256_add_epi32(a, b); }
  static inline u sub_u(u a, u b) { return _mm256_sub_epi32(a, b); }
  template <int n>
  static inline u shl(u a) {
    return _mm256_slli_epi32(a, n);
  }
  static inline f clip(f x, f lo, f hi) {
    const f low = _mm256_blendv_ps(x, lo, _mm256_cmp_ps(x, lo, _CMP_LT_OQ));
    return _mm256_blendv_ps(low, hi, _mm256_cmp_ps(x, hi, _CMP_GT_OQ));
  }
  static inline f at_least(f x, f lo) { return _mm256_max_ps(lo, x); }  // the second operand where one is NaN
  static inline f where_equal(f x, float y, f then, f otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(x, set(y), _CMP_EQ_OQ));
  }
  // Which lanes are greater as signed numbers, a bit each.
  static inline uint32_t above(u a, uint32_t b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(as_float(_mm256_cmpgt_epi32(a, set_u(b)))));
  }
  static inline f nan_or(f x, f y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q)); }

  static inline f load(const void* p, DType type, int64_t i) {
    if (type == kFloat32) return _mm256_loadu_ps(static_cast<const float*>(p) + i);
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p) + i));
    return type == kBFloat16 ? widen_bfloat16(h) : _mm256_cvtph_ps(h);
  }
  // Stores, and returns the value that was stored.
  static inline f store(void* p, DType type, int64_t i, f x) {
    if (type == kFloat32) {
      _mm256_storeu_ps(static_cast<float*>(p) + i, x);
      return x;
    }
    const __m128i h = type == kBFloat16 ? round_bfloat16(x) : _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(p) + i), h);
    return type == kBFloat16 ? widen_bfloat16(h) : _mm256_cvtph_ps(h);
  }

  // Sums over a chain, and the normal distribution's tail.
  static inline f add(f a, f b) { return _mm256_add_ps(a, b); }
  static inline f div(f a, f b) { return _mm256_div_ps(a, b); }
  static inline f less(f a, f b, f then, f otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static inline bool any(f a) { return _mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_NEQ_UQ)); }
  static inline f load(const float* p) { return _mm256_loadu_ps(p); }
  static inline void accumulate(double* lanes, f x) {
    const __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(x));
    const __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
    _mm256_store_pd(lanes, _mm256_add_pd(_mm256_load_pd(lanes), low));
    _mm256_store_pd(lanes + 4, _mm256_add_pd(_mm256_load_pd(lanes + 4), high));
  }

  // Sums of whole numbers: 64 bits for two lanes of 32.
  using whole = __m256i;
  static inline whole add_lanes(whole sum, u x) {
    return _mm256_add_epi64(_mm256_add_epi64(sum, _mm256_srli_epi64(x, 32)),
                            _mm256_and_si256(x, broadcast(0xffffffff)));
  }

  // Four chains' Philox in step.
  using half = __m256i;  // every other chain's 32 bits, in 64 each; the upper ones are ignored
  static inline half load_half(const uint64_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static inline void store_half(uint64_t* p, half x) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), x); }
  static inline half product(half a, half b) { return _mm256_mul_epu32(a, b); }
  static inline half plus(half a, half b) { return _mm256_add_epi64(a, b); }
  static inline half upper(half a) { return _mm256_srli_epi64(a, 32); }
  static inline half xor2(half a, half b) { return _mm256_xor_si256(a, b); }
  static inline half xor3(half a, half b, half c) { return _mm256_xor_si256(a, _mm256_xor_si256(b, c)); }
  static inline u merged(half even, half odd) { return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa); }
  static inline f root(f a) { return _mm256_sqrt_ps(a); }

  // mt19937 and torch's Box-Muller.
  static constexpr int groups = 1;
  template <int n>
  static inline u shr(u a) {
    return _mm256_srli_epi32(a, n);
  }
  static inline f choose(u top, f a, f b) { return _mm256_blendv_ps(b, a, as_float(top)); }
  static inline void load(const uint32_t* p, u& first, u& second) {
    first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8));
  }
  static inline void store(uint32_t* p, f first, f second) {
    _mm256_storeu_ps(reinterpret_cast<float*>(p), first);
    _mm256_storeu_ps(reinterpret_cast<float*>(p + 8), second);
  }

 private:
  static inline f widen_bfloat16(__m128i h) { return as_float(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
  static inline __m128i round_bfloat16(f x) {
    const u i = bits(x), odd = and_(_mm256_srli_epi32(i, 16), 1);
    const u rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(i, set_u(0x7fff)), odd), 16);
    const f nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    const u r = bits(_mm256_blendv_ps(as_float(rounded), as_float(set_u(0x7fc0)), nan));
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
  }
};

}  // namespace
}  // namespace ulam::cpu
