// Langevin and Metropolis operations over one instruction set's lanes. Included once per instruction set, after its
// lanes; everything is in an unnamed namespace, so that no function compiled for one set can be linked into another.
#pragma once

#include <cstring>

#include "mcmc_kernels.h"
#include "mcmc_steps.h"

namespace ulam::cpu {
namespace {

template <class V>
constexpr McmcKernels mcmc_with() {
  return {V::width,         langevin_units<V>,  kick_drift_units<V>, mala_accept_groups<V>, squared_norm_groups<V>,
          accept_groups<V>, evaluate_groups<V>, run_groups<V>};
}

}  // namespace
}  // namespace ulam::cpu
