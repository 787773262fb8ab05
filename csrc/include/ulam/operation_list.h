// The operations of both native backends, a line each: X(name, arguments). The backends' declarations, and the
// functions that Python sees, are made of it.
#pragma once

#include "ulam/likelihood.h"
#include "ulam/mcmc.h"
#include "ulam/operations.h"

// Those of which the CPU's threads each do some of the units: see Sharing in operations.h.
#define ULAM_SHARED_OPERATIONS(X) \
  X(step, Step)                   \
  X(blend, Blend)                 \
  X(fill_normal, Fill)            \
  X(affine, Affine)               \
  X(langevin, Langevin)           \
  X(kick_drift, KickDrift)        \
  X(mala_accept, MalaAccept)      \
  X(squared_norm, SquaredNorm)    \
  X(accept, Accept)               \
  X(evaluate, Evaluate)           \
  X(run, Run)                     \
  X(gaussian_kl, GaussianKl)      \
  X(discretised_log_likelihood, DiscretisedLikelihood)

#define ULAM_OPERATIONS(X)  \
  ULAM_SHARED_OPERATIONS(X) \
  X(reduce, Reduce)         \
  X(look_up, LookUp)        \
  X(advance, Advance)
