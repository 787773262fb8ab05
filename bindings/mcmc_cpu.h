// The Langevin and Metropolis operations of ulam_kernels._cpu.
#pragma once

#include "kernels.h"
#include "mcmc.h"

namespace ulam {

// `kernels` is the instruction set in use: looked up while the GIL is held, and run without it.
inline void register_mcmc(pybind11::module_& m, const cpu::Kernels* const& kernels) {
  const auto unlocked = [&kernels](auto operation) {
    return [operation, &kernels](const auto& arguments, int threads) {
      const cpu::Kernels& used = *kernels;
      pybind11::gil_scoped_release release;
      operation(used, arguments, threads);
    };
  };
  m.def("mcmc_langevin", langevin_function<int>(unlocked(&cpu::langevin)));
  m.def("mcmc_kick_drift", kick_drift_function<int>(unlocked(&cpu::kick_drift)));
  m.def("mcmc_mala_accept", mala_accept_function<int>(unlocked(&cpu::mala_accept)));
  m.def("mcmc_squared_norm", squared_norm_function<int>(unlocked(&cpu::squared_norm)));
  m.def("mcmc_accept", accept_function<int>(unlocked(&cpu::accept)));
  m.def("mcmc_evaluate", evaluate_function<int>(unlocked(&cpu::evaluate)));
  m.def("mcmc_run", run_function<int>(unlocked(&cpu::run)));
}

}  // namespace ulam
