// Sums over chains of a variational bound's terms on CUDA devices; the conventions are those of kernels.h.
#pragma once

#include "ulam/likelihood.h"

namespace ulam::cuda {

const char* gaussian_kl(const GaussianKl&, void* stream);
const char* discretised(const DiscretisedLikelihood&, void* stream);

}  // namespace ulam::cuda
