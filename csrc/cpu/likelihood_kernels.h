// Sums over chains of a variational bound's terms: what the bindings call, and what one instruction set must provide.
#pragma once

#include "kernels.h"
#include "ulam/likelihood.h"

namespace ulam::cpu {

// One instruction set: each operation sums the chains [begin, end).
struct LikelihoodKernels {
  void (*gaussian_kl)(const GaussianKl&, int64_t begin, int64_t end);
  void (*discretised)(const DiscretisedLikelihood&, int64_t begin, int64_t end);
};
extern const LikelihoodKernels likelihood_portable;
#if !defined(ULAM_NO_X86)
extern const LikelihoodKernels likelihood_avx2, likelihood_avx512;
#endif

void gaussian_kl(const Kernels&, const GaussianKl&, int threads);
void discretised(const Kernels&, const DiscretisedLikelihood&, int threads);

}  // namespace ulam::cpu
