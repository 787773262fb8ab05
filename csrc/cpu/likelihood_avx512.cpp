// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c; reached only when the processor has them.
#include "lanes_avx512.h"

#include "likelihood_impl.h"

namespace ulam::cpu {
namespace {

struct LikelihoodAvx512 : Avx512 {
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
};

}  // namespace
const LikelihoodKernels likelihood_avx512 = likelihood_with<LikelihoodAvx512>();
}  // namespace ulam::cpu
