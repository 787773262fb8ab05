// Compiled for any machine.
#include "kernels_impl.h"

namespace ulam::cpu {
constexpr Kernels portable_kernels = kernels_of<Portable>("portable");
}
