// The Langevin and Metropolis operations of ulam_kernels._cuda.
#pragma once

#include <stdexcept>

#include "mcmc.h"
#include "mcmc_kernels.h"

namespace ulam {

inline void register_mcmc(pybind11::module_& m) {
  const auto launched = [](auto operation) {
    return [operation](const auto& arguments, uintptr_t stream) {
      if (const char* error = operation(arguments, pointer<void>(stream))) throw std::runtime_error(error);
    };
  };
  m.def("mcmc_langevin", langevin_function<uintptr_t>(launched(&cuda::langevin)));
  m.def("mcmc_kick_drift", kick_drift_function<uintptr_t>(launched(&cuda::kick_drift)));
  m.def("mcmc_mala_accept", mala_accept_function<uintptr_t>(launched(&cuda::mala_accept)));
  m.def("mcmc_squared_norm", squared_norm_function<uintptr_t>(launched(&cuda::squared_norm)));
  m.def("mcmc_accept", accept_function<uintptr_t>(launched(&cuda::accept)));
  m.def("mcmc_evaluate", evaluate_function<uintptr_t>(launched(&cuda::evaluate)));
  m.def("mcmc_run", run_function<uintptr_t>(launched(&cuda::run)));
}

}  // namespace ulam
