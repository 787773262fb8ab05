// Langevin and Metropolis operations: what the bindings call, and what one instruction set must provide.
#pragma once

#include "kernels.h"
#include "ulam/mcmc.h"

namespace ulam::cpu {

// One instruction set. An operation is cut into units, of which `run` executes [begin, end): a unit is `width` chains,
// or where `chunk` is not 0 at most `chunk` elements of one chain.
struct McmcKernels {
  int width;
  void (*langevin)(const Langevin&, int64_t chunk, int64_t begin, int64_t end);
  void (*kick_drift)(const KickDrift&, int64_t chunk, int64_t begin, int64_t end);
  void (*mala_accept)(const MalaAccept&, int64_t begin, int64_t end);
  void (*squared_norm)(const SquaredNorm&, int64_t begin, int64_t end);
  void (*accept)(const Accept&, int64_t begin, int64_t end);
  void (*evaluate)(const Evaluate&, int64_t begin, int64_t end);
  void (*run)(const Run&, int64_t begin, int64_t end);
};
extern const McmcKernels mcmc_portable;
#if !defined(ULAM_NO_X86)
extern const McmcKernels mcmc_avx2, mcmc_avx512;
#endif

void langevin(const Kernels&, const Langevin&, int threads);
void kick_drift(const Kernels&, const KickDrift&, int threads);
void mala_accept(const Kernels&, const MalaAccept&, int threads);
void squared_norm(const Kernels&, const SquaredNorm&, int threads);
void accept(const Kernels&, const Accept&, int threads);
void evaluate(const Kernels&, const Evaluate&, int threads);
void run(const Kernels&, const Run&, int threads);

}  // namespace ulam::cpu
