// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c; reached only when the processor has them.
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12 wrongly warns inside its own headers
#include "lanes_avx512.h"

#include "mcmc_impl.h"

namespace ulam::cpu {
namespace {

struct McmcAvx512 : Avx512 {
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

  static inline f add(f a, f b) { return _mm512_add_ps(a, b); }
  static inline f div(f a, f b) { return _mm512_div_ps(a, b); }
  static inline f root(f a) { return _mm512_sqrt_ps(a); }
};

}  // namespace
const McmcKernels mcmc_avx512 = mcmc_with<McmcAvx512>();
}  // namespace ulam::cpu
