// Checks all tensors of an operation at once, which in Python would take a microsecond or two.
#pragma once

#include "tensors.h"

namespace ulam::raw {

struct Range {
  const char* begin = nullptr;
  const char* end = nullptr;

  Range() = default;
  explicit Range(const View& v) : begin(v.address<char>()), end(begin + v.elements() * v.bits / 8) {}
  bool meets(const Range& other) const { return begin < other.end && other.begin < end; }
};

// Whether a tensor is exactly the one that is written or, with `skipped` = 1, its first register.
inline bool is_same(const View& v, const View& written, int skipped) {
  return v.address<char>() == written.address<char>() && v.kind == written.kind && v.bits == written.bits &&
         v.contiguous() && v.dimensions == written.dimensions - skipped &&
         std::equal(v.shape, v.shape + v.dimensions, written.shape + skipped);
}

// eager(tensor, ...): whether nothing records the call, and each tensor is None or has a view, and so memory of its
// own.
inline PyObject* eager(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (recorded()) Py_RETURN_FALSE;
  for (Py_ssize_t k = 0; k < count; ++k)
    if (given[k] != Py_None && !view_of(given[k])) Py_RETURN_FALSE;
  Py_RETURN_TRUE;
}

// separate(written, elementwise, read, ...): whether no tensor that is read shares memory with the one that is written;
// the first `elementwise` of them may be that tensor itself, or its first register. None counts as no tensor. False too
// where a tensor has no view: the caller then checks each.
inline PyObject* separate(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (count < 2) return PyErr_Format(PyExc_TypeError, "separate: got %zd arguments, expected 2 or more", count);
  const auto written = view_of(given[0]);
  const long elementwise = PyLong_AsLong(given[1]);
  if (elementwise == -1 && PyErr_Occurred()) return nullptr;
  if (!written) Py_RETURN_FALSE;
  const Range range(*written);
  for (Py_ssize_t k = 2; k < count; ++k) {
    if (given[k] == Py_None) continue;
    const auto v = view_of(given[k]);
    if (!v || v->device_type != written->device_type || v->device != written->device) Py_RETURN_FALSE;
    const bool same = k - 2 < elementwise && (is_same(*v, *written, 0) || is_same(*v, *written, 1));
    if (!same && Range(*v).meets(range)) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

// Whether it is int64 [chains], contiguous and without the negative bit.
inline bool is_per_chain(const View& v, PyObject* tensor, int64_t chains) {
  return v.is(kInteger, 64) && v.dimensions == 1 && v.shape[0] == chains && v.contiguous() && !negative(tensor);
}

// ready(state, net_in, squares, row, seed, chain, draw, model, uncond, noise, source, ...): as eager, and whether
// squares, row, seed, chain and draw are plain int64 [B], no tensor after squares shares memory with state, net_in or
// squares, and squares none with the two before; model to source may be state[0] itself. All but state and row may be
// None. False too where a tensor has no view: the caller then checks each.
inline PyObject* ready(PyObject*, PyObject* const* given, Py_ssize_t count) {
  constexpr Py_ssize_t kIds = 3, kElementwise = 7, kOthers = 11;
  if (count < kOthers) return PyErr_Format(PyExc_TypeError, "ready: got %zd arguments, expected 11 or more", count);
  const auto state = view_of(given[0]);
  if (recorded() || !state || state->dimensions < 2) Py_RETURN_FALSE;
  const Range written(*state);
  Range also, sums;
  if (given[1] != Py_None) {
    const auto view = view_of(given[1]);
    if (!view) Py_RETURN_FALSE;
    also = Range(*view);
  }
  if (given[2] != Py_None) {
    const auto view = view_of(given[2]);
    if (!view || view->device_type != state->device_type || view->device != state->device) Py_RETURN_FALSE;
    sums = Range(*view);
    if (!is_per_chain(*view, given[2], state->shape[1]) || sums.meets(written) || sums.meets(also)) Py_RETURN_FALSE;
  }
  for (Py_ssize_t k = kIds; k < count; ++k) {
    if (given[k] == Py_None && k > kIds) continue;
    const auto v = view_of(given[k]);
    if (!v || v->device_type != state->device_type || v->device != state->device) Py_RETURN_FALSE;
    if (k < kElementwise && !is_per_chain(*v, given[k], state->shape[1])) Py_RETURN_FALSE;
    const Range range(*v);
    if (range.meets(also) || range.meets(sums)) Py_RETURN_FALSE;
    if (range.meets(written) && !(k >= kElementwise && k < kOthers && is_same(*v, *state, 1))) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

}  // namespace ulam::raw
