// torch's tensors through DLPack's table of C functions: where their elements lie, without a call into Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>
#include <optional>

namespace ulam {

// Whether f() ran; an exception of it becomes Python's. For functions of Python's C API.
template <class F>
bool without_exceptions(F&& f) {
  try {
    f();
    return true;
  } catch (const pybind11::builtin_exception& error) {
    error.set_error();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return false;
}

// DLTensor of DLPack 1.
struct View {
  void* data;
  int32_t device_type, device;
  int32_t dimensions;
  uint8_t kind, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;

  template <class T>
  T* address() const {
    return reinterpret_cast<T*>(static_cast<char*>(data) + byte_offset);
  }

  bool on_cpu() const { return device_type == 1; }
  bool is(int wanted_kind, int wanted_bits) const { return kind == wanted_kind && bits == wanted_bits && lanes == 1; }

  int64_t elements() const {
    int64_t count = 1;
    for (int i = 0; i < dimensions; ++i) count *= shape[i];
    return count;
  }

  bool contiguous() const {
    int64_t stride = 1;
    for (int i = dimensions - 1; strides && i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != stride) return false;
      stride *= shape[i];
    }
    return true;
  }
};

constexpr int kInteger = 0, kFloat = 2, kBrain = 4;  // kinds

// DLPackExchangeAPI of DLPack 1.
struct ExchangeTable {
  uint32_t major, minor;
  ExchangeTable* older;
  void *allocate, *owned_from, *owned_to;
  int (*view)(void* tensor, View* out);
  void* stream;
};

// torch's own table, the types torch.Tensor and torch.nn.Parameter, the method `is_neg`, the functions that report an
// active torch.jit.trace, mode (such as make_fx's) or transform of torch.func; null without torch, or with one that has
// no table.
struct Torch {
  PyTypeObject *type = nullptr, *parameter = nullptr;
  const ExchangeTable* table = nullptr;
  PyObject* is_neg = nullptr;
  PyObject *tracing = nullptr, *modes = nullptr, *transforms = nullptr;
};
inline Torch g_torch;

// Call it before view_of, while the module is imported.
inline void find_torch() {
  try {
    const pybind11::module_ torch = pybind11::module_::import("torch");
    const pybind11::object tensor = torch.attr("Tensor"), within = torch.attr("_C");
    const pybind11::object capsule = tensor.attr("__dlpack_c_exchange_api__");
    auto* table = static_cast<ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table) throw pybind11::error_already_set();
    while (table && table->major != 1) table = table->older;
    pybind11::object is_neg = tensor.attr("is_neg"), tracing = within.attr("_get_tracing_state");
    pybind11::object modes = within.attr("_len_torch_dispatch_stack");
    pybind11::object parameter = torch.attr("nn").attr("Parameter");
    pybind11::object transforms = within.attr("_functorch").attr("peek_interpreter_stack");
    if (table && table->view)
      g_torch = {reinterpret_cast<PyTypeObject*>(tensor.ptr()),
                 reinterpret_cast<PyTypeObject*>(parameter.release().ptr()),
                 table,
                 is_neg.release().ptr(),
                 tracing.release().ptr(),
                 modes.release().ptr(),
                 transforms.release().ptr()};
  } catch (const pybind11::error_already_set&) {
  }
}

// Whether a torch.Tensor has the negative bit: memory then holds the numbers negated, and a view does not show it.
inline bool negative(PyObject* tensor) {
  PyObject* const answer = PyObject_CallOneArg(g_torch.is_neg, tensor);
  Py_XDECREF(answer);
  if (!answer) PyErr_Clear();
  return answer != Py_False;
}

// Whether something records or transforms torch's operations now, or may.
inline bool recorded() {
  if (!g_torch.table) return true;
  for (PyObject* function : {g_torch.modes, g_torch.tracing, g_torch.transforms}) {
    PyObject* const answer = PyObject_CallNoArgs(function);
    const bool found = !answer || PyObject_IsTrue(answer) != 0;
    Py_XDECREF(answer);
    if (found) return PyErr_Clear(), true;
  }
  return false;
}

// The memory of a tensor of exactly this type; nothing for other objects, and for those without such a view. It does
// not show the negative bit: see `negative`.
inline std::optional<View> view_as(PyTypeObject* type, PyObject* object) {
  View view;
  if (!g_torch.table || Py_TYPE(object) != type) return std::nullopt;
  if (g_torch.table->view(object, &view) != 0) {
    PyErr_Clear();
    return std::nullopt;
  }
  if (!view.data && view.elements() != 0) return std::nullopt;  // as those of torch.func.functionalize
  return view;
}

// The memory of a torch.Tensor: of no subclass.
inline std::optional<View> view_of(PyObject* object) { return view_as(g_torch.type, object); }

// The memory of a torch.Tensor or a torch.nn.Parameter.
inline std::optional<View> view_of_parameter(PyObject* object) {
  return view_as(Py_TYPE(object) == g_torch.parameter ? g_torch.parameter : g_torch.type, object);
}

// Like pybind11's gil_scoped_release, without its look-ups.
struct Unlocked {
  PyThreadState* const released = PyEval_SaveThread();
  ~Unlocked() { PyEval_RestoreThread(released); }
};

}  // namespace ulam
