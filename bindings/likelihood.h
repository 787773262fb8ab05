// How the arguments of the likelihood operations come from Python, as in arguments.h: the order is that of
// kernels/ulam_kernels/native/likelihood.py. `Own` is the backend's own argument (the CPU's thread count, a CUDA
// stream).
#pragma once

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "ulam/likelihood.h"

namespace ulam {

template <class Own, class Run>
auto function_of(const GaussianKl*, Run run) {
  return [run](int64_t chains, int64_t elements, uintptr_t mean_a, uintptr_t log_var_a, uintptr_t mean_b,
               uintptr_t log_var_b, bool per_element_a, bool per_element_b, uintptr_t out, Own own) {
    run(GaussianKl{chains, elements, pointer<const float>(mean_a), pointer<const float>(log_var_a),
                   pointer<const float>(mean_b), pointer<const float>(log_var_b), per_element_a, per_element_b,
                   pointer<double>(out)},
        own);
  };
}

template <class Own, class Run>
auto function_of(const DiscretisedLikelihood*, Run run) {
  return [run](int64_t chains, int64_t elements, uintptr_t x, uintptr_t mean, uintptr_t log_scale, bool per_element,
               float half, float edge, bool tanh, uintptr_t out, Own own) {
    run(DiscretisedLikelihood{chains, elements, pointer<const float>(x), pointer<const float>(mean),
                              pointer<const float>(log_scale), per_element, half, edge, tanh ? kTanh : kExact,
                              pointer<double>(out)},
        own);
  };
}

}  // namespace ulam
