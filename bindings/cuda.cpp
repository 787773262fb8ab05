// ulam_kernels._cuda: the CUDA operations on raw device pointers and a stream. Shapes, dtypes and devices are checked
// in kernels/ulam_kernels/ops/; the caller makes the device of the pointers current.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "arguments.h"
#include "kernels.h"
#include "likelihood.h"
#include "mcmc.h"

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
#define ULAM_REGISTER(operation, Arguments)                                                    \
  m.def(#operation, ulam::function_of<uintptr_t>(static_cast<const ulam::Arguments*>(nullptr), \
                                                 launched<ulam::Arguments>(&ulam::cuda::operation)));
  ULAM_OPERATIONS(ULAM_REGISTER)
#undef ULAM_REGISTER
  m.def("device_count", &device_count, "How many devices of this machine can run these kernels.");
  m.def("unavailable_reason", &unavailable_reason, "Why there is none, in one line; None if there is one.");
}
