// ulam_kernels._cuda: the CUDA operations on raw device pointers and a stream. Shapes, dtypes and devices are checked
// in kernels/ulam_kernels/ops.py; the caller makes the device of the pointers current.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "kernels.h"

namespace py = pybind11;
using namespace ulam::cuda;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

void run_step(int64_t chains, int64_t elements, int registers, uintptr_t state, int state_type, uintptr_t coef,
              uintptr_t flags, int64_t rows, uintptr_t row, uintptr_t model, uintptr_t uncond, int model_type,
              int64_t model_stride, uintptr_t guidance, uintptr_t seed, uintptr_t chain, uintptr_t draw,
              uintptr_t noise, uintptr_t net_in, int net_type, uintptr_t stream) {
  const Step s{chains,
               elements,
               registers,
               pointer<void>(state),
               static_cast<DType>(state_type),
               pointer<const float>(coef),
               pointer<const int32_t>(flags),
               rows,
               pointer<const int64_t>(row),
               pointer<const void>(model),
               pointer<const void>(uncond),
               static_cast<DType>(model_type),
               model_stride,
               pointer<const float>(guidance),
               pointer<const int64_t>(seed),
               pointer<const int64_t>(chain),
               pointer<const int64_t>(draw),
               pointer<const float>(noise),
               pointer<void>(net_in),
               static_cast<DType>(net_type)};
  check(step(s, pointer<void>(stream)));
}

void run_fill_normal(int64_t chains, int64_t elements, int64_t offset, uintptr_t out, int type, uintptr_t seed,
                     uintptr_t chain, uintptr_t draw, uint32_t tag, float scale, uintptr_t stream) {
  const Fill s{chains,
               elements,
               offset,
               pointer<void>(out),
               static_cast<DType>(type),
               pointer<const int64_t>(seed),
               pointer<const int64_t>(chain),
               pointer<const int64_t>(draw),
               tag,
               scale};
  check(fill_normal(s, pointer<void>(stream)));
}

void run_affine(int64_t chains, int64_t elements, uintptr_t x, int x_type, uintptr_t m, int m_type, uintptr_t out,
                int out_type, uintptr_t a, uintptr_t b, uintptr_t stream) {
  const Affine s{chains,
                 elements,
                 pointer<const void>(x),
                 pointer<const void>(m),
                 pointer<void>(out),
                 static_cast<DType>(x_type),
                 static_cast<DType>(m_type),
                 static_cast<DType>(out_type),
                 pointer<const float>(a),
                 pointer<const float>(b)};
  check(affine(s, pointer<void>(stream)));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA operations of ulam_kernels, on raw device pointers and a stream of the current device.";
  m.def("step", &run_step);
  m.def("fill_normal", &run_fill_normal);
  m.def("affine", &run_affine);
  m.def("device_count", &device_count, "How many devices of this machine can run these kernels.");
  m.def("unavailable_reason", &unavailable_reason, "Why there is none, in one line; None if there is one.");
}
