#include "kernels_impl.h"

namespace ulam::cpu {
const Kernels portable_kernels = kernels_of<Portable>("portable");
}
