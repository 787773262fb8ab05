// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c; reached only when the processor has them.
#include "lanes_avx512.h"
#include "torch_normal_impl.h"

namespace ulam::cpu {
namespace {

// Two groups at a time: the first halves of both in one vector, the second halves in another.
struct TorchAvx512 : Avx512 {
  static constexpr int groups = 2;
  template <int n>
  static inline u shr(u a) {
    return _mm512_srli_epi32(a, n);
  }
  static inline f choose(u top, f a, f b) { return _mm512_mask_mov_ps(b, _mm512_movepi32_mask(top), a); }
  static inline void load(const uint32_t* p, u& first, u& second) {
    const u a = load_as<u>(p), b = load_as<u>(p + 16);
    first = _mm512_shuffle_i32x4(a, b, 0x44);
    second = _mm512_shuffle_i32x4(a, b, 0xee);
  }
  static inline void store(uint32_t* p, f first, f second) {
    const f a = _mm512_shuffle_f32x4(first, second, 0x44), b = _mm512_shuffle_f32x4(first, second, 0xee);
    std::memcpy(p, &a, sizeof a);
    std::memcpy(p + 16, &b, sizeof b);
  }
};

}  // namespace
const TorchNormal torch_normal_avx512 = torch_normal_with<TorchAvx512>();
}  // namespace ulam::cpu
