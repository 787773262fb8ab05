// Compiled with -mavx2 -mfma -mf16c; reached only when the processor has them.
#include "lanes_avx2.h"

#include "likelihood_impl.h"

namespace ulam::cpu {
namespace {

struct LikelihoodAvx2 : Avx2 {
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
};

}  // namespace
const LikelihoodKernels likelihood_avx2 = likelihood_with<LikelihoodAvx2>();
}  // namespace ulam::cpu
