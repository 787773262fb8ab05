// A step that is repeated many times, with as little as possible between Python and its loop over the elements. After a
// call of the network the caches are cold and pybind11's dispatcher takes 10 us, so these functions use Python's C API
// directly.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "door.h"
#include "tensors.h"
#include "ulam/operations.h"
#include "ulam/row.h"

namespace ulam {

// A step of one register with all chains at one row, from plain tensors: float32, contiguous, on the CPU.
class BoundStep {
 public:
  using Check = void (*)(const Step&);     // raises unless a row's arguments are there
  using Run = void (*)(const Step&, int);  // without the GIL, on this many threads

  BoundStep(const std::vector<int64_t>& shape, const float* coef, const int32_t* flags, int64_t rows, Check check,
            Run run)
      : shape_(shape), row_(shape.at(0), 0), rows_(rows), check_(check), run_(run) {
    step_.chains = shape[0];
    step_.elements = 1;
    for (size_t i = 1; i < shape.size(); ++i) step_.elements *= shape[i];
    step_.model_stride = step_.elements;
    step_.registers = 1;
    step_.rows = 1;
    step_.row = row_.data();
    step_.coef = coef;
    step_.flags = flags;
  }
  BoundStep(const BoundStep&) = delete;

  // Asked once of each tensor: reading the negative bit takes as long as all the rest.
  bool takes(PyObject* tensor) const { return address(tensor) != nullptr && !negative(tensor); }

  void run(int64_t row, PyObject* out, PyObject* source, PyObject* model, PyObject* noise, PyObject* squares,
           int threads) const {
    if (row < 0 || row >= rows_)
      throw pybind11::index_error("row: got " + std::to_string(row) + ", expected 0 to " + std::to_string(rows_ - 1));
    Step s = step_;
    s.coef += row * row_width(1);
    s.flags += row;
    s.state = required(out, "out");
    s.source = required(source, "source");
    s.model = required(model, "model");
    if (noise != Py_None) s.noise = required(noise, "noise");
    if (squares != Py_None) s.squares = sums(squares);
    check_(s);
    const Unlocked unlocked;
    run_(s, threads);
  }

 private:
  float* address(PyObject* tensor) const {
    const auto view = view_of(tensor);
    const bool plain = view && view->on_cpu() && view->is(kFloat, 32) && view->contiguous() &&
                       std::equal(shape_.begin(), shape_.end(), view->shape, view->shape + view->dimensions);
    return plain ? view->address<float>() : nullptr;
  }

  float* required(PyObject* tensor, const char* name) const {
    if (float* found = address(tensor)) return found;
    throw pybind11::value_error(
        std::string(name) + ": got another tensor, expected a contiguous float32 one of the bound shape on the CPU");
  }

  int64_t* sums(PyObject* tensor) const {
    const auto view = view_of(tensor);
    if (view && view->on_cpu() && view->is(kInteger, 64) && view->contiguous() && view->dimensions == 1 &&
        view->shape[0] == step_.chains)
      return view->address<int64_t>();
    throw pybind11::value_error("squares: got another tensor, expected a contiguous int64 one [B] on the CPU");
  }

  std::vector<int64_t> shape_, row_;
  int64_t rows_;
  Check check_;
  Run run_;
  Step step_{};
};

namespace raw {

inline const BoundStep& bound(PyObject* capsule) {
  return *static_cast<const BoundStep*>(PyCapsule_GetPointer(capsule, nullptr));
}

inline PyObject* takes(PyObject* self, PyObject* tensor) { return PyBool_FromLong(bound(self).takes(tensor)); }

inline PyObject* run(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  if (count != 7) return PyErr_Format(PyExc_TypeError, "run: got %zd arguments, expected 7", count);
  const int64_t row = PyLong_AsLongLong(given[0]);
  const int threads = static_cast<int>(PyLong_AsLong(given[6]));
  if (PyErr_Occurred()) return nullptr;
  const bool done =
      without_exceptions([&] { bound(self).run(row, given[1], given[2], given[3], given[4], given[5], threads); });
  if (!done) return nullptr;
  Py_RETURN_NONE;
}

// The value of a tensor of one element on the CPU; None for others.
inline PyObject* scalar(PyObject*, PyObject* tensor) {
  const auto view = view_of(tensor);
  if (!view || !view->on_cpu() || view->elements() != 1) Py_RETURN_NONE;
  if (negative(tensor)) Py_RETURN_NONE;
  if (view->is(kInteger, 64)) return PyFloat_FromDouble(static_cast<double>(*view->address<int64_t>()));
  if (view->is(kFloat, 32)) return PyFloat_FromDouble(*view->address<float>());
  if (view->is(kFloat, 64)) return PyFloat_FromDouble(*view->address<double>());
  Py_RETURN_NONE;
}

// Where the elements of a tensor on the CPU lie; None for others.
inline PyObject* address(PyObject*, PyObject* tensor) {
  const auto view = view_of(tensor);
  if (!view || !view->on_cpu()) Py_RETURN_NONE;
  return PyLong_FromVoidPtr(view->address<void>());
}

}  // namespace raw

// bound_step(shape, coef, flags, rows) makes (takes(tensor), run(row, out, source, model, noise, squares, threads)).
template <BoundStep::Check check, BoundStep::Run run>
void register_bound_step(pybind11::module_& m) {
  static PyMethodDef functions[] = {
      {"scalar", raw::scalar, METH_O, "The one element of a CPU tensor, or None."},
      {"address", raw::address, METH_O, "Where the elements of a CPU tensor lie, or None."},
      {"eager", reinterpret_cast<PyCFunction>(&raw::eager), METH_FASTCALL, "See door.h."},
      {"ready", reinterpret_cast<PyCFunction>(&raw::ready), METH_FASTCALL, "See door.h."},
      {"separate", reinterpret_cast<PyCFunction>(&raw::separate), METH_FASTCALL, "See door.h."},
      {},
  };
  find_torch();
  if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw pybind11::error_already_set();
  m.def("bound_step", [](const std::vector<int64_t>& shape, uintptr_t coef, uintptr_t flags, int64_t rows) {
    static PyMethodDef takes = {"takes", raw::takes, METH_O, nullptr};
    static PyMethodDef step = {"run", reinterpret_cast<PyCFunction>(&raw::run), METH_FASTCALL, nullptr};
    const auto* table = reinterpret_cast<const float*>(coef);
    const pybind11::capsule self(new BoundStep(shape, table, reinterpret_cast<const int32_t*>(flags), rows, check, run),
                                 [](void* bound) { delete static_cast<BoundStep*>(bound); });
    const auto function = [&](PyMethodDef& definition) {
      return pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&definition, self.ptr()));
    };
    return pybind11::make_tuple(function(takes), function(step));
  });
}

}  // namespace ulam
