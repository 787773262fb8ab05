// Compiled with -mavx2 -mfma -mf16c; reached only when the processor has them.
#include "lanes_avx2.h"
#include "torch_normal_impl.h"

namespace ulam::cpu {
namespace {

struct TorchAvx2 : Avx2 {
  static constexpr int groups = 1;
  template <int n>
  static inline u shr(u a) {
    return _mm256_srli_epi32(a, n);
  }
  static inline f choose(u top, f a, f b) { return _mm256_blendv_ps(b, a, as_float(top)); }
  static inline void load(const uint32_t* p, u& first, u& second) {
    first = load_as<u>(p);
    second = load_as<u>(p + 8);
  }
  static inline void store(uint32_t* p, f first, f second) {
    std::memcpy(p, &first, sizeof first);
    std::memcpy(p + 8, &second, sizeof second);
  }
};

}  // namespace
const TorchNormal torch_normal_avx2 = torch_normal_with<TorchAvx2>();
}  // namespace ulam::cpu
