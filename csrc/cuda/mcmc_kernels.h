// The Langevin and Metropolis operations on a device, as the operations of kernels.h.
#pragma once

#include "ulam/mcmc.h"

namespace ulam::cuda {

const char* langevin(const Langevin&, void* stream);
const char* kick_drift(const KickDrift&, void* stream);
const char* mala_accept(const MalaAccept&, void* stream);
const char* squared_norm(const SquaredNorm&, void* stream);
const char* accept(const Accept&, void* stream);
const char* evaluate(const Evaluate&, void* stream);
const char* run(const Run&, void* stream);

}  // namespace ulam::cuda
