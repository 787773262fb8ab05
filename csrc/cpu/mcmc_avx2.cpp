// Compiled with -mavx2 -mfma -mf16c; reached only when the processor has them.
#include "lanes_avx2.h"

#include "mcmc_impl.h"

namespace ulam::cpu {
namespace {

struct McmcAvx2 : Avx2 {
  using half = __m256i;  // every other chain's 32 bits, in 64 each; the upper ones are ignored
  static inline half load_half(const uint64_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static inline void store_half(uint64_t* p, half x) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), x); }
  static inline half product(half a, half b) { return _mm256_mul_epu32(a, b); }
  static inline half plus(half a, half b) { return _mm256_add_epi64(a, b); }
  static inline half upper(half a) { return _mm256_srli_epi64(a, 32); }
  static inline half xor2(half a, half b) { return _mm256_xor_si256(a, b); }
  static inline half xor3(half a, half b, half c) { return _mm256_xor_si256(a, _mm256_xor_si256(b, c)); }
  static inline u merged(half even, half odd) { return _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa); }

  static inline f add(f a, f b) { return _mm256_add_ps(a, b); }
  static inline f div(f a, f b) { return _mm256_div_ps(a, b); }
  static inline f root(f a) { return _mm256_sqrt_ps(a); }
};

}  // namespace
const McmcKernels mcmc_avx2 = mcmc_with<McmcAvx2>();
}  // namespace ulam::cpu
