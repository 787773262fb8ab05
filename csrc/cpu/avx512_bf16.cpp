// Compiled as avx512.cpp is, with -mavx512bf16; reached only when the processor has that. Networks alone differ.
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12 wrongly warns inside its own headers
#include "kernels.h"
#include "lanes_avx512.h"
#include "walk.h"

namespace ulam::cpu {
namespace {

struct Avx512Bf16 : Avx512 {
  static constexpr bool has_dots = true;
  static constexpr const Kernels* operations = &avx512_kernels;  // but for networks
  static inline f dot(f sum, u x, u w) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
  // Sixteen numbers as eight words.
  static inline void store_words(const float* x, uint32_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(load(x))));
  }
  static inline u word_of_pair(f even, f odd) {
    const auto widened = [](f x) { return _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x))); };
    return _mm512_or_si512(widened(even), _mm512_slli_epi32(widened(odd), 16));
  }
};

}  // namespace

constexpr NetworkKernels avx512_bf16_networks = {walk_units<Avx512Bf16>, call_network<Avx512Bf16>};

}  // namespace ulam::cpu
