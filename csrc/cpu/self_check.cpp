// Which instruction sets run here, and the check of each when the extension is imported.
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels.h"
#include "select.h"
#include "ulam/reduce.h"

namespace ulam::cpu {

namespace {

// Whether products of pairs of bf16 numbers are two fused multiply-adds, the upper one first, each rounded, with zeros
// for denormals: in one chain (a lane a column) and in 32 (a lane a chain). A first pair makes the sum that they meet.
bool multiplies_pairs(const NetworkKernels& k) {
  struct Case {
    float first, even, odd, expected;  // times 1, but for the last case's
  };
  static const Case cases[] = {
      {0x1p24f, 1.0f, 1.0f, 0x1p24f}, {0x1p24f, -1.0f, 3.0f, 0x1.000004p24f}, {0x1p-63f, 0.0f, -0x1p-64f, 0.0f}};
  static const int64_t code[] = {4, 0, 0, 1, 1, 1, 2, -1, 4, 1, 0, 1, 0, -1, 1, 0, -1, 0, -1, 0, 0, 0};
  for (const Case& c : cases)
    for (const int64_t chains : {1, 32}) {
      const uint32_t one = 0x3f80, small = 0x2000;  // 1 and 2^-63
      const uint32_t word = c.expected == 0.0f ? small << 16 | small : one << 16 | one;
      alignas(64) float packed[2 * 8 + 2 * 128] = {}, x[128], out[32];
      for (int at : {0, 8, 16, 16 + 128}) std::memcpy(packed + at, &word, 4);  // two pairs, narrow and in a panel
      for (int b = 0; b < 32; ++b) x[4 * b] = 0.0f, x[4 * b + 1] = c.first, x[4 * b + 2] = c.even, x[4 * b + 3] = c.odd;
      k.call_network({chains, 1, code, packed, packed, x, nullptr, nullptr, out, nullptr}, 0, chains);
      for (int b = 0; b < chains; ++b)
        if (!(out[b] == c.expected)) return false;
    }
  return true;
}

}  // namespace

const Kernels* const* usable_kernels() {
  static const Kernels* usable[5] = {};
  static const bool filled = [] {
    const Kernels** next = usable;
#if !defined(ULAM_NO_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      if (__builtin_cpu_supports("avx512bf16") && multiplies_pairs(avx512_bf16_networks)) {
        static Kernels with_products = avx512_kernels;
        with_products.name = "avx512_bf16";
        with_products.walk = avx512_bf16_networks.walk;
        with_products.call_network = avx512_bf16_networks.call_network;
        *next++ = &with_products;
      }
      *next++ = &avx512_kernels;
    }
    if (avx2) *next++ = &avx2_kernels;
#endif
    *next = &portable_kernels;
    return true;
  }();
  (void)filled;
  return usable;
}

namespace {

// Case A of the noise standard: seed 0, chain 0, draw 0.
bool makes_known_normals(const Kernels& k) {
  static const uint32_t expected[16] = {0xbdf209dd, 0xbf9282cc, 0x3fb6c3cd, 0xbee1edc5, 0xbf341f75, 0x3ef3dde4,
                                        0x3fac7c32, 0x3f086bd5, 0xbf9cdceb, 0xbd8d51fd, 0x3f12ffcc, 0x3f6bc050,
                                        0xbedca016, 0x3e876ecb, 0xbc2befad, 0xbdf8a5db};
  const int64_t zero = 0;
  float z[64];
  fill_normal(k, Fill{1, 64, 0, z, kFloat32, &zero, &zero, &zero, 0, 1.0f}, 1);
  return std::memcmp(z, expected, sizeof expected) == 0;
}

// The checksums of 4,096 words spread over all 2^32 (from the NumPy reference): they see one wrong rounding.
bool transforms_exactly(const Kernels& k) {
  uint64_t sums[3] = {};
  for (uint64_t range = 0; range < 64; ++range) k.hash_noise(range * 0x04010001, 64, sums);
  return sums[0] == 0x2cc7d0999e807b63 && sums[1] == 0x7b532d77cf711aaf && sums[2] == 0xc10ad8ba7176b318;
}

// clip(NaN, -1, 1) is NaN and clip(-2, -1, 1) is -1, in the vectors and in the tail behind them.
bool clips_like_the_standard(const Kernels& k) {
  static const float row[] = {1, 0, -1, 1, 0, 0, 1, 0, 1, 0, 0};  // D = x, x' = D
  static const int32_t flags = 1 | 1 << 7;
  const int64_t zero = 0;
  float state[66];
  for (int i = 0; i < 66; ++i) state[i] = i % 2 ? -2.0f : std::nanf("");
  Step s{};
  s.chains = s.rows = s.registers = 1;
  s.elements = 66;
  s.state = state;
  s.source = state;
  s.coef = row;
  s.flags = &flags;
  s.row = &zero;
  step(k, s, 1);
  uint32_t bits[66];
  std::memcpy(bits, state, sizeof bits);
  for (int i = 0; i < 66; ++i)
    if (i % 2 ? state[i] != -1.0f : (bits[i] & 0x7fffffffu) <= 0x7f800000u) return false;
  return true;
}

// The scales of a row that reduces D = x, of one chain.
Scales reduced(const Kernels& k, const float* x, int64_t elements, uint32_t kind, float level) {
  const float row[] = {1, 0, level, infinity(), 0, 0, 1, 0, 1, 0, 1};  // D = x, x' = D + z
  const int32_t flags = static_cast<int32_t>(1 | kReadsNoise | kUsesX0 | kind);
  const int64_t zero = 0;
  Scales scales{};
  Reduce r{};
  r.step.chains = r.step.rows = r.step.registers = 1;
  r.step.elements = elements;
  r.step.state = const_cast<float*>(x);
  r.step.source = x;
  r.step.coef = row;
  r.step.flags = &flags;
  r.step.row = r.step.seed = r.step.chain = r.step.draw = &zero;
  r.out = reinterpret_cast<float*>(&scales);
  reduce(k, r, 1);
  return scales;
}

// What the NumPy reference makes of numbers spread over [-32, 32): as many as a quantile is first bracketed for, in
// whole groups and with a rest.
const char* reduces_otherwise(const Kernels& k) {
  static const struct {
    int64_t elements;
    uint32_t low, high, ratio, root;  // the quantiles at 0.1 and 0.9, the squared ratio of the norms and its root
  } known[] = {{kLeastBracketed, 0x404cd420, 0x41e67128, 0x3b3a784d, 0x3d5a7c83},
               {kLeastBracketed + 7, 0x404d8057, 0x41e6782b, 0x3b3ad21c, 0x3d5ab11b}};
  constexpr int64_t kMost = kLeastBracketed + 7;
  float x[kMost];
  for (uint32_t i = 0; i < kMost; ++i)
    x[i] = static_cast<float>(static_cast<int32_t>(i * 0x9e3779b1u >> 8) - 0x800000) * 0x1p-18f;
  for (const auto& answer : known) {
    const Scales low = reduced(k, x, answer.elements, kThreshold, 0.1f);
    const Scales high = reduced(k, x, answer.elements, kThreshold, 0.9f);
    if (Scalar::bits(low.high) != answer.low || Scalar::bits(high.high) != answer.high)
      return "its quantiles are not those of the reference";
    const Scales norms = reduced(k, x, answer.elements, kNormalise, 0.0f);
    if (Scalar::bits(norms.x0) != answer.ratio || Scalar::bits(norms.z) != answer.root)
      return "its norms are not those of the reference";
  }
  for (const int64_t at : {int64_t{17}, kMost - 1}) {
    const float before = std::exchange(x[at], not_a_number());
    if ((Scalar::bits(reduced(k, x, kMost, kThreshold, 0.5f).high) & 0x7fffffffu) <= 0x7f800000u)
      return "its quantiles do not pass NaN";
    x[at] = before;
  }
  return nullptr;
}

}  // namespace

const char* self_check(const Kernels& k) {
  if (!makes_known_normals(k) || !transforms_exactly(k)) return "its normals are not those of noise-v1";
  if (!clips_like_the_standard(k)) return "its clip does not pass NaN";
  return reduces_otherwise(k);
}

}  // namespace ulam::cpu
