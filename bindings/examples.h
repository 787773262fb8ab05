// A step of training examples, straight from tensors: a small batch has no time for checks in Python. Anything but
// plain tensors is left to the caller, who has other ways. The function uses Python's C API: see bound_step.h.
#pragma once

#include <vector>

#include "tick.h"
#include "ulam/row.h"

namespace ulam::quick {

// From (state [R, B, *shape], source [B, *shape], row [B], coef [rows, width], flags [rows]).
inline bool read_examples(PyObject* const* given, Step& s) {
  const auto state = view_of(given[0]), source = view_of(given[1]), row = view_of(given[2]), coef = view_of(given[3]);
  if (!state || !source || !row || !coef || !coef->on_cpu() || coef->dimensions != 2 || !coef->contiguous() ||
      !coef->is(kFloat, 32))
    return false;
  if (!state->on_cpu() || !source->on_cpu() || !state->contiguous() || !source->contiguous() ||
      source->dimensions < 2 || state->dimensions != source->dimensions + 1 || !state->is(source->kind, source->bits) ||
      !std::equal(source->shape, source->shape + source->dimensions, state->shape + 1) || !source->elements())
    return false;
  if (!type_of(*source, s.state_type) || s.state_type == kFloat64 || negative(given[0]) || negative(given[1]))
    return false;
  s.registers = static_cast<int>(state->shape[0]);
  s.chains = source->shape[0];
  s.elements = source->elements() / s.chains;
  s.rows = coef->shape[0];
  if (s.registers < 1 || s.registers > 5 || coef->shape[1] != row_width(s.registers) || s.elements > 1 << 30)
    return false;
  s.state = state->address<void>();
  s.source = source->address<void>();
  s.coef = coef->address<float>();
  Extent rows, flags;
  const Extent written{state->address<const char>(),
                       state->address<const char>() + state->elements() * state->bits / 8};
  const Extent read{source->address<const char>(),
                    source->address<const char>() + source->elements() * source->bits / 8};
  return plain(given[2], kInteger, {s.chains}, s.row, rows) && plain(given[4], kInteger, {s.rows}, s.flags, flags) &&
         apart({written}, {read, rows, flags});
}

struct StepOperation {
  void (*check)(const Step&);     // raises unless a row's arguments are there
  void (*run)(const Step&, int);  // on this many threads
};
inline StepOperation g_step;

inline PyObject* step_examples(PyObject*, PyObject* const* given, Py_ssize_t count) {
  if (count != 10) return PyErr_Format(PyExc_TypeError, "quick_examples: got %zd arguments, expected 10", count);
  const int64_t seed = PyLong_AsLongLong(given[5]), first = PyLong_AsLongLong(given[6]);
  const int64_t draw = PyLong_AsLongLong(given[7]);
  const int threads = static_cast<int>(PyLong_AsLong(given[9]));
  if (PyErr_Occurred()) return nullptr;
  Step s{};
  if (!is_wanted(given[8]) || recorded() || !read_examples(given, s)) Py_RETURN_FALSE;
  const bool done = without_exceptions([&] {
    std::vector<int64_t> names(3 * s.chains, seed);
    for (int64_t b = 0; b < s.chains; ++b) names[s.chains + b] = first + b, names[2 * s.chains + b] = draw;
    s.seed = names.data();
    s.chain = s.seed + s.chains;
    s.draw = s.chain + s.chains;
    g_step.check(s);
    std::optional<Unlocked> unlocked;
    if (s.chains * s.elements > 8192) unlocked.emplace();  // less is not worth it
    g_step.run(s, threads);
  });
  if (!done) return nullptr;
  Py_RETURN_TRUE;
}

// quick_examples(state, source, row, coef, flags, seed, first id, draw, backend, threads).
inline void register_examples(pybind11::module_& m, const StepOperation& step) {
  static PyMethodDef functions[] = {
      {"quick_examples", reinterpret_cast<PyCFunction>(&step_examples), METH_FASTCALL, "See examples.h."},
      {},
  };
  g_step = step;
  if (PyModule_AddFunctions(m.ptr(), functions) != 0) throw pybind11::error_already_set();
}

}  // namespace ulam::quick
