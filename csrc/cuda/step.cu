// The fused step, and its kernels of steps that do not record.
#include "step.h"

namespace ulam::cuda {
namespace {

// Of a step whose seed, chain and draw are all there, or null: where no noise can be made of them.
cudaError_t launch_any(const Step& s, void* stream) {
  uint32_t missing = 0;
  if (!s.model) missing |= kReadsModel;
  if (!s.model || s.model_stride < 2 * s.elements) missing |= kLearned;
  if (!s.noise && !s.seed) missing |= kReadsNoise;
  if (!s.scales) missing |= kReduced;
  if (s.last)
    return s.squares ? launch_recorded_channels_last(s, missing, stream) : launch_channels_last(s, missing, stream);
  return s.squares ? launch_recorded(s, missing, stream) : launch_step<false>(s, missing, stream);
}

}  // namespace

const char* step(const Step& s, void* stream) {
  if (s.chains == 0 || s.elements == 0) return nullptr;
  Step launched = s;
  if (s.noise || !s.seed || !s.chain || !s.draw) launched.seed = launched.chain = launched.draw = nullptr;
  const cudaError_t error = launch_any(launched, stream);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "step: could not launch on %d registers of %lld chains of %lld elements", s.registers,
                 static_cast<long long>(s.chains), static_cast<long long>(s.elements));
}

}  // namespace ulam::cuda
