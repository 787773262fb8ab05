// One look at all tensors of a step, where Python would need a microsecond or two.
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

// Whether a tensor without holes is state[0], element for element.
inline bool is_first(const View& v, const View& state) {
  return v.address<char>() == state.address<char>() && v.kind == state.kind && v.bits == state.bits && v.contiguous() &&
         v.dimensions == state.dimensions - 1 && std::equal(v.shape, v.shape + v.dimensions, state.shape + 1);
}

// ready(state, net_in, row, seed, chain, draw, model, uncond, noise, source, ...): whether row, seed, chain and draw
// are plain int64 [B], and no tensor after net_in shares memory with state or net_in; model to source may be state[0]
// itself. All but state and row may be None. Where a tensor has no view, as where the answer is no, the caller looks at
// each.
inline PyObject* ready(PyObject*, PyObject* const* given, Py_ssize_t count) {
  constexpr Py_ssize_t kIds = 2, kElementwise = 6, kOthers = 10;
  if (count < kOthers) return PyErr_Format(PyExc_TypeError, "ready: got %zd arguments, expected 10 or more", count);
  const auto state = view_of(given[0]);
  if (!state || state->dimensions < 2) Py_RETURN_FALSE;
  const Range written(*state);
  Range also;
  if (given[1] != Py_None) {
    const auto view = view_of(given[1]);
    if (!view) Py_RETURN_FALSE;
    also = Range(*view);
  }
  for (Py_ssize_t k = kIds; k < count; ++k) {
    if (given[k] == Py_None && k > kIds) continue;
    const auto v = view_of(given[k]);
    if (!v || v->device_type != state->device_type || v->device != state->device) Py_RETURN_FALSE;
    if (k < kElementwise) {
      const bool plain = v->is(kInteger, 64) && v->dimensions == 1 && v->shape[0] == state->shape[1] && v->contiguous();
      if (!plain || negative(given[k])) Py_RETURN_FALSE;
    }
    const Range range(*v);
    if (range.meets(also)) Py_RETURN_FALSE;
    if (range.meets(written) && !(k >= kElementwise && k < kOthers && is_first(*v, *state))) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

}  // namespace ulam::raw
