// Compiled with -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c; reached only when the processor has them.
#pragma GCC diagnostic ignored "-Wuninitialized"  // gcc 12 wrongly warns inside its own headers
#include "lanes_avx512.h"

#include "kernels_impl.h"

namespace ulam::cpu {
constexpr Kernels avx512_kernels = kernels_of<Avx512>("avx512");
}
