// The kernels of steps with channels innermost in memory that sum the squares of their noise.
#include "step_pixels.h"

namespace ulam::cuda {

cudaError_t launch_recorded_channels_last(const Step& s, uint32_t missing, void* stream) {
  return launch_channels_last<true>(s, missing, stream);
}

}  // namespace ulam::cuda
