// What a tick does around the network, on tensors that stay where they are: only the network's output is looked at
// anew. What is not plain is left to kernels/ulam_kernels/{tick,ops/rows}.py. The functions use Python's C API: see
// bound_step.h.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <vector>

#include "arguments.h"
#include "examples.h"
#include "tick.h"

namespace ulam::quick {

class BoundTick {
 public:
  // step: all of it but model and uncond; its row and draw are what advance writes. shape: [B, *shape].
  BoundTick(const Step& step, const LookUp& look_up, int64_t* cursor, bool checks, std::vector<int64_t> shape)
      : step_(step), look_up_(look_up), shape_(std::move(shape)), checks_(checks) {
    advance_.chains = step.chains;
    advance_.cursor = cursor;
    advance_.now = const_cast<int64_t*>(step.row);
    const int64_t chains = step.chains, values = chains * step.elements;
    static constexpr int kBytes[] = {4, 2, 2};
    state_ = extent(step.state, values * step.registers * kBytes[step.state_type]);
    written_ = {extent(cursor, 6 * 8 * chains), extent(advance_.now, 2 * 8 * chains),
                extent(step.net_in, step.net_in ? values * kBytes[step.net_type] : 0),
                extent(step.squares, step.squares ? 8 * chains : 0)};
  }
  BoundTick(const BoundTick&) = delete;

  // The times that the network is told; false, with nothing done, where `out` is no longer the tensor that was bound.
  bool look_up(PyObject* out, int threads) const {
    int64_t* whole = nullptr;
    float* real = nullptr;
    Extent here;
    const bool taken = look_up_.whole ? plain(out, kInteger, {step_.chains}, whole, here)
                                      : plain(out, kFloat, {step_.chains}, real, here);
    if (recorded() || !taken || here.begin != look_up_.out) return false;
    without_lock(g_look_up.small(look_up_), [&] { g_look_up.run(look_up_, threads); });
    return true;
  }

  // advance, then step; false, with nothing done, where an output is not plain.
  bool step(PyObject* model, PyObject* uncond, int threads) const {
    Step s = step_;
    Advance a = advance_;
    DType other{};
    if (recorded() || !read(model, s.model, s.model_type)) return false;
    if (uncond == Py_None)
      s.guidance = nullptr;
    else if (!read(uncond, s.uncond, other) || other != s.model_type)
      return false;
    s.model_stride = s.elements;
    if (checks_) {
      a.elements = a.model_stride = a.uncond_stride = s.elements;
      a.model = s.model, a.uncond = s.uncond, a.type = s.model_type, a.guidance = s.guidance;
    }
    without_lock(s.chains * s.elements <= 8192, [&] {
      g_advance.run(a, threads);
      g_step.check(s);
      g_step.run(s, threads);
    });
    return true;
  }

 private:
  static Extent extent(const void* address, int64_t bytes) {
    const auto* begin = static_cast<const char*>(address);
    return {begin, begin + bytes};
  }

  template <class Work>
  static void without_lock(bool small, Work work) {
    std::optional<Unlocked> unlocked;
    if (!small) unlocked.emplace();
    work();
  }

  // A contiguous output shaped like the states, apart from all that is written, or the first register itself.
  bool read(PyObject* tensor, const void*& address, DType& type) const {
    const auto view = view_of(tensor);
    if (!view || !view->on_cpu() || !view->contiguous() || !type_of(*view, type) || type == kFloat64 ||
        !std::equal(shape_.begin(), shape_.end(), view->shape, view->shape + view->dimensions) || negative(tensor))
      return false;
    address = view->address<void>();
    const Extent here = extent(address, view->elements() * view->bits / 8);
    for (const Extent& written : written_)
      if (here.meets(written)) return false;
    return !here.meets(state_) || (address == step_.state && type == step_.state_type);
  }

  Step step_;
  LookUp look_up_;
  Advance advance_{};
  std::vector<int64_t> shape_;
  bool checks_;
  Extent state_;
  std::array<Extent, 4> written_;
};

inline const BoundTick& bound_tick(PyObject* capsule) {
  return *static_cast<const BoundTick*>(PyCapsule_GetPointer(capsule, nullptr));
}

// The function of the last argument, the number of threads, as a boolean; false where an exception was raised.
template <class F>
PyObject* answer(PyObject* threads, F&& function) {
  const int count = static_cast<int>(PyLong_AsLong(threads));
  if (PyErr_Occurred()) return nullptr;
  bool done = false;
  if (!without_exceptions([&] { done = function(count); })) return nullptr;
  return PyBool_FromLong(done);
}

inline PyObject* tick_look_up(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "look_up: got %zd arguments, expected 2", count);
  return answer(given[1], [&](int threads) { return bound_tick(self).look_up(given[0], threads); });
}

inline PyObject* tick_step(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  if (count != 3) return PyErr_Format(PyExc_TypeError, "step: got %zd arguments, expected 3", count);
  return answer(given[2], [&](int threads) { return bound_tick(self).step(given[0], given[1], threads); });
}

// bound_tick(arguments of step, then (times, whole, out, cursor, checks, shape)) makes (look_up(out, threads),
// step(model, uncond, threads)).
inline void register_bound_tick(pybind11::module_& m) {
  const auto make = [](const Step& step, const pybind11::tuple& more) {
    static PyMethodDef look_up = {"look_up", reinterpret_cast<PyCFunction>(&tick_look_up), METH_FASTCALL, nullptr};
    static PyMethodDef tick = {"step", reinterpret_cast<PyCFunction>(&tick_step), METH_FASTCALL, nullptr};
    LookUp times{};
    times.chains = step.chains;
    times.rows = step.rows;
    times.times = pointer<const void>(more[0].cast<uintptr_t>());
    times.whole = more[1].cast<bool>();
    times.out = pointer<void>(more[2].cast<uintptr_t>());
    auto* const cursor = pointer<int64_t>(more[3].cast<uintptr_t>());
    times.row = cursor;
    auto shape = more[5].cast<std::vector<int64_t>>();
    const pybind11::capsule self(new BoundTick(step, times, cursor, more[4].cast<bool>(), std::move(shape)),
                                 [](void* bound) { delete static_cast<BoundTick*>(bound); });
    const auto function = [&](PyMethodDef& definition) {
      return pybind11::reinterpret_steal<pybind11::object>(PyCFunction_New(&definition, self.ptr()));
    };
    return pybind11::make_tuple(function(look_up), function(tick));
  };
  m.def("bound_tick", function_of<pybind11::tuple>(static_cast<const Step*>(nullptr), make));
}

}  // namespace ulam::quick
