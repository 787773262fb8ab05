// Trees of the No-U-Turn sampler that stay where they are: their leaps, and whole chains of a built-in density.
#pragma once

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "ulam/trees.h"

namespace ulam {

// Reads a tuple of addresses and numbers from the front.
class Given {
 public:
  explicit Given(const pybind11::tuple& values) : values_(values) {}
  template <class T>
  void to(T*& address) {
    address = pointer<T>(values_[next_++].cast<uintptr_t>());
  }
  void to(int64_t& number) { number = values_[next_++].cast<int64_t>(); }
  template <class... T>
  void all(T&... to_each) {
    (to(to_each), ...);
  }

 private:
  const pybind11::tuple& values_;
  size_t next_ = 0;
};

// The order is that of kernels/ulam_kernels/cpu/bound_trees.py.
inline Trees trees_of(int64_t max_depth, const pybind11::tuple& tensors) {
  Trees t{};
  t.max_depth = static_cast<int>(max_depth);
  Given given(tensors);
  given.all(t.chains, t.elements, t.x, t.score, t.energy, t.seed, t.chain, t.draw, t.scale);
  given.all(t.here.x, t.here.v, t.here.score, t.there.x, t.there.v, t.there.score, t.chosen, t.chosen_score, t.sum);
  given.all(t.first, t.last, t.before, t.chosen_energy, t.start, t.weight, t.doubling_weight, t.accepted);
  given.all(t.depth, t.leaps, t.leaf, t.directions, t.live, t.fresh, t.forward, t.moved, t.diverged, t.done);
  return t;
}

inline TreeRecord record_of(const pybind11::tuple& tensors) {
  TreeRecord r{};
  if (tensors.empty()) return r;
  Given(tensors).all(r.made, r.limit, r.first, r.thin, r.counted, r.kept, r.draws, r.energies, r.moments, r.depth,
                     r.leapfrogs, r.diverging, r.diverged_now, r.acceptance, r.divergences, r.all_leapfrogs);
  return r;
}

inline void set_columns(Trees& t, uintptr_t step, uintptr_t inverse_temperature, uintptr_t root_temperature) {
  t.step = pointer<const float>(step);
  t.inverse_temperature = pointer<const float>(inverse_temperature);
  t.root_temperature = pointer<const float>(root_temperature);
}

// bound_trees(max_depth, tensors) gives leap(parts, step, 1 / T, sqrt(T), energy, score, record, threads) and run(kind,
// dimension, components, params, step, 1 / T, sqrt(T), record, threads).
template <void (*leap)(const TreeLeap&, int), void (*run)(const TreeRun&, int)>
void register_bound_trees(pybind11::module_& m) {
  const auto bound = [](int64_t max_depth, const pybind11::tuple& tensors) {
    const Trees trees = trees_of(max_depth, tensors);
    const auto leaps = [trees](int parts, uintptr_t step, uintptr_t inverse, uintptr_t root, uintptr_t energy,
                               uintptr_t score, const pybind11::tuple& record, int threads) {
      TreeLeap s{{trees}, parts, pointer<const double>(energy), pointer<const float>(score)};
      set_columns(s, step, inverse, root);
      s.record = record_of(record);
      const pybind11::gil_scoped_release unlocked;
      leap(s, threads);
    };
    const auto runs = [trees](int kind, int64_t dimension, int64_t components, uintptr_t params, uintptr_t step,
                              uintptr_t inverse, uintptr_t root, const pybind11::tuple& record, int threads) {
      TreeRun s{{trees}, {kind, dimension, components, pointer<const float>(params)}};
      set_columns(s, step, inverse, root);
      s.record = record_of(record);
      const pybind11::gil_scoped_release unlocked;
      run(s, threads);
    };
    return pybind11::make_tuple(pybind11::cpp_function(leaps), pybind11::cpp_function(runs));
  };
  m.def("bound_trees", bound, "Trees whose tensors stay where they are.");
}

}  // namespace ulam
