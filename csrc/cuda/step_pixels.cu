// The kernels of steps with channels innermost in memory that do not record.
#include "step_pixels.h"

namespace ulam::cuda {

cudaError_t launch_channels_last(const Step& s, uint32_t missing, void* stream) {
  return launch_channels_last<false>(s, missing, stream);
}

}  // namespace ulam::cuda
