// How the arguments of the likelihood operations come from Python, as in arguments.h: the order is that of
// kernels/ulam_kernels/{cpu,cuda}/likelihood.py. `Own` is the backend's own argument (the CPU's thread count, a CUDA
// stream).
#pragma once

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "ulam/likelihood.h"

namespace ulam {

template <class Own, class RunKl, class RunDiscretised>
void register_likelihood(pybind11::module_& m, RunKl run_kl, RunDiscretised run_discretised) {
  m.def("gaussian_kl",
        [run_kl](int64_t chains, int64_t elements, uintptr_t mean_a, uintptr_t log_var_a, uintptr_t mean_b,
                 uintptr_t log_var_b, bool each_a, bool each_b, uintptr_t out, Own own) {
          run_kl(GaussianKl{chains, elements, pointer<const float>(mean_a), pointer<const float>(log_var_a),
                            pointer<const float>(mean_b), pointer<const float>(log_var_b), each_a, each_b,
                            pointer<double>(out)},
                 own);
        });
  m.def("discretised_log_likelihood",
        [run_discretised](int64_t chains, int64_t elements, uintptr_t x, uintptr_t mean, uintptr_t log_scale, bool each,
                          float half, float edge, bool tanh, uintptr_t out, Own own) {
          run_discretised(DiscretisedLikelihood{chains, elements, pointer<const float>(x), pointer<const float>(mean),
                                                pointer<const float>(log_scale), each, half, edge,
                                                tanh ? kTanh : kExact, pointer<double>(out)},
                          own);
        });
}

}  // namespace ulam
