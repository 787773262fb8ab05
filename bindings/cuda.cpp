// ulam_kernels._cuda: the CUDA operations on raw device pointers and a stream. Shapes, dtypes and devices are checked
// in kernels/ulam_kernels/ops.py; the caller makes the device of the pointers current.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "arguments.h"
#include "kernels.h"
#include "likelihood.h"
#include "likelihood_kernels.h"
#include "mcmc_cuda.h"

namespace py = pybind11;
using namespace ulam::cuda;

namespace {

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

template <class Arguments>
auto launched(const char* (*operation)(const Arguments&, void*)) {
  return [operation](const Arguments& s, uintptr_t stream) { check(operation(s, ulam::pointer<void>(stream))); };
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA operations of ulam_kernels, on raw device pointers and a stream of the current device.";
  m.def("step", ulam::step_function<uintptr_t>(launched<ulam::Step>(&step)));
  m.def("reduce", ulam::reduce_function<uintptr_t>(launched<ulam::Reduce>(&reduce)));
  m.def("blend", ulam::blend_function<uintptr_t>(launched<ulam::Blend>(&blend)));
  m.def("fill_normal", ulam::fill_function<uintptr_t>(launched<ulam::Fill>(&fill_normal)));
  m.def("look_up", ulam::look_up_function<uintptr_t>(launched<ulam::LookUp>(&look_up)));
  m.def("advance", ulam::advance_function<uintptr_t>(launched<ulam::Advance>(&advance)));
  m.def("affine", ulam::affine_function<uintptr_t>(launched<ulam::Affine>(&affine)));
  ulam::register_likelihood<uintptr_t>(m, launched<ulam::GaussianKl>(&gaussian_kl),
                                       launched<ulam::DiscretisedLikelihood>(&discretised));
  ulam::register_mcmc(m);
  m.def("device_count", &device_count, "How many devices of this machine can run these kernels.");
  m.def("unavailable_reason", &unavailable_reason, "Why there is none, in one line; None if there is one.");
}
