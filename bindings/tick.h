// look_up and advance straight from tensors: a tick of a small network has no time for checks in Python. Anything but
// plain tensors is left to kernels/ulam_kernels/tick.py, which checks again and says what is wrong. The functions use
// Python's C API: see bound_step.h.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdlib>
#include <initializer_list>
#include <optional>

#include "tensors.h"
#include "ulam/operations.h"
#include "ulam/tick.h"

namespace ulam::quick {

// The memory that a tensor's elements lie in.
struct Extent {
  const char *begin = nullptr, *end = nullptr;
  bool meets(const Extent& other) const { return begin < other.end && other.begin < end; }
};

inline bool apart(std::initializer_list<Extent> written, std::initializer_list<Extent> read) {
  for (const Extent* w = written.begin(); w != written.end(); ++w) {
    for (const Extent* v = written.begin(); v != w; ++v)
      if (w->meets(*v)) return false;
    for (const Extent& r : read)
      if (w->meets(r)) return false;
  }
  return true;
}

// A contiguous tensor on the CPU of this kind, width and shape, without torch's negative bit; false for any other.
template <class T>
bool plain(PyObject* tensor, int kind, std::initializer_list<int64_t> shape, T*& address, Extent& extent) {
  const auto view = view_of(tensor);
  if (!view || !view->on_cpu() || !view->is(kind, 8 * sizeof(T)) || !view->contiguous() ||
      !std::equal(shape.begin(), shape.end(), view->shape, view->shape + view->dimensions) || negative(tensor))
    return false;
  address = const_cast<T*>(view->address<T>());
  extent.begin = reinterpret_cast<const char*>(address);
  extent.end = extent.begin + view->elements() * static_cast<int64_t>(sizeof(T));
  return true;
}

// Whether the CPU backend is wanted. Changes of os.environ reach the environment that getenv reads.
inline bool is_wanted(PyObject* backend) {
  if (backend != Py_None) return PyUnicode_Check(backend) && PyUnicode_CompareWithASCIIString(backend, "cpu") == 0;
  const char* const name = std::getenv("ULAM_BACKEND");
  return !name || !*name || std::string(name) == "cpu";
}

inline bool read_look_up(PyObject* const* given, LookUp& s) {
  const auto times = view_of(given[0]), row = view_of(given[1]);
  if (!times || !times->on_cpu() || times->dimensions != 1 || !times->contiguous()) return false;
  if (!row || row->dimensions != 1 || negative(given[0])) return false;
  s.rows = times->shape[0];
  s.chains = row->shape[0];
  s.times = times->address<void>();
  s.whole = times->is(kInteger, 64);
  if (!s.whole && !times->is(kFloat, 32)) return false;
  Extent table{times->address<const char>(), times->address<const char>() + s.rows * (s.whole ? 8 : 4)};
  Extent rows, out, guidance, interval, weight;
  if (!plain(given[1], kInteger, {s.chains}, s.row, rows)) return false;
  int64_t* whole = nullptr;
  float* real = nullptr;
  if (!(s.whole ? plain(given[2], kInteger, {s.chains}, whole, out) : plain(given[2], kFloat, {s.chains}, real, out)))
    return false;
  s.out = s.whole ? static_cast<void*>(whole) : real;
  if (given[5] == Py_None) return given[3] == Py_None && given[4] == Py_None && apart({out}, {table, rows});
  return plain(given[3], kFloat, {s.chains}, s.guidance, guidance) &&
         plain(given[4], kFloat, {2, s.chains}, s.interval, interval) &&
         plain(given[5], kFloat, {s.chains}, s.weight, weight) &&
         apart({out, weight}, {table, rows, guidance, interval});
}

// A network's output for this many chains, the elements of each together in memory in any order; false for others.
inline bool read_output(const View& view, int64_t chains, const void*& address, int64_t& stride, int64_t& elements,
                        Extent& extent) {
  if (view.dimensions < 1 || view.shape[0] != chains || !view.on_cpu()) return false;
  elements = 1;
  int left = 0;  // dimensions longer than one
  for (int i = 1; i < view.dimensions; ++i) elements *= view.shape[i], left += view.shape[i] > 1;
  if (view.strides && elements > 0)
    for (int64_t next = 1; left > 0; --left) {
      int i = view.dimensions - 1;
      while (i > 0 && (view.shape[i] == 1 || view.strides[i] != next)) --i;
      if (i == 0) return false;
      next *= view.shape[i];
    }
  stride = view.strides && chains > 1 ? view.strides[0] : elements;
  address = view.address<void>();
  extent.begin = view.address<const char>();
  extent.end = extent.begin + ((chains - 1) * stride + elements) * (view.bits / 8);
  return chains > 0 && elements > 0;
}

inline bool type_of(const View& view, DType& type) {
  if (view.is(kFloat, 32)) return type = kFloat32, true;
  if (view.is(kBrain, 16)) return type = kBFloat16, true;
  if (view.is(kFloat, 16)) return type = kFloat16, true;
  if (view.is(kFloat, 64)) return type = kFloat64, true;
  return false;
}

inline bool read_advance(PyObject* const* given, Advance& s) {
  const auto cursor = view_of(given[0]);
  if (!cursor || cursor->dimensions != 2) return false;
  s.chains = cursor->shape[1];
  Extent counts, now, model, uncond, guidance;
  if (!plain(given[0], kInteger, {6, s.chains}, s.cursor, counts) ||
      !plain(given[1], kInteger, {2, s.chains}, s.now, now))
    return false;
  if (given[2] == Py_None) return given[3] == Py_None && apart({counts, now}, {});
  const auto output = view_of(given[2]);
  if (!output || !type_of(*output, s.type) ||
      !read_output(*output, s.chains, s.model, s.model_stride, s.elements, model))
    return false;
  if (given[3] == Py_None) return apart({counts, now}, {model});
  const auto other = view_of(given[3]);
  int64_t elements;
  return other && other->is(output->kind, output->bits) &&
         std::equal(output->shape, output->shape + output->dimensions, other->shape,
                    other->shape + other->dimensions) &&
         read_output(*other, s.chains, s.uncond, s.uncond_stride, elements, uncond) &&
         plain(given[4], kFloat, {s.chains}, s.guidance, guidance) && apart({counts, now}, {model, uncond, guidance});
}

// An operation, and whether its arguments are so small that releasing the GIL is not worth it.
template <class Arguments>
struct Operation {
  void (*run)(const Arguments&, int threads);
  bool (*small)(const Arguments&);
};

// Runs the operation on (tensors ..., backend, threads) and returns whether it did.
template <class Arguments, int tensors>
PyObject* run(const Operation<Arguments>& operation, bool (*read)(PyObject* const*, Arguments&), PyObject* const* given,
              Py_ssize_t count) {
  if (count != tensors + 2) return PyErr_Format(PyExc_TypeError, "got %zd arguments, expected %d", count, tensors + 2);
  Arguments s{};
  if (!is_wanted(given[tensors]) || recorded() || !read(given, s)) Py_RETURN_FALSE;
  const int threads = static_cast<int>(PyLong_AsLong(given[tensors + 1]));
  if (PyErr_Occurred()) return nullptr;
  const bool done = without_exceptions([&] {
    std::optional<Unlocked> unlocked;
    if (!operation.small(s)) unlocked.emplace();
    operation.run(s, threads);
  });
  if (!done) return nullptr;
  Py_RETURN_TRUE;
}

inline Operation<LookUp> g_look_up;
inline Operation<Advance> g_advance;

inline PyObject* look_up(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return run<LookUp, 6>(g_look_up, read_look_up, given, count);
}

inline PyObject* advance(PyObject*, PyObject* const* given, Py_ssize_t count) {
  return run<Advance, 5>(g_advance, read_advance, given, count);
}

// quick_look_up(times, row, out, guidance, interval, weight, backend, threads) and quick_advance(cursor, now, model,
// uncond, guidance, backend, threads).
inline void register_quick(pybind11::module_& m, const Operation<LookUp>& looks_up,
                           const Operation<Advance>& advances) {
  static PyMethodDef functions[] = {
      {"quick_look_up", reinterpret_cast<PyCFunction>(&look_up), METH_FASTCALL, "look_up, if all of it is plain."},
      {"quick_advance", reinterpret_cast<PyCFunction>(&advance), METH_FASTCALL, "advance, if all of it is plain."},
      {},
  };
  g_look_up = looks_up;
  g_advance = advances;
  if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw pybind11::error_already_set();
}

}  // namespace ulam::quick
