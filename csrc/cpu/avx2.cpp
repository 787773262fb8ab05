// Compiled with -mavx2 -mfma -mf16c; reached only when the processor has them.
#include "lanes_avx2.h"

#include "kernels_impl.h"

namespace ulam::cpu {
constexpr Kernels avx2_kernels = kernels_of<Avx2>("avx2");
}
