// The kernels of steps that sum the squares of their noise.
#include "step.h"

namespace ulam::cuda {

cudaError_t launch_recorded(const Step& s, uint32_t missing, void* stream) {
  return launch_step<true>(s, missing, stream);
}

}  // namespace ulam::cuda
