// ulam_kernels._cpu: the native CPU operations on raw pointers. Shapes, dtypes and devices are checked in
// kernels/ulam_kernels/ops/; only what lives in the arrays themselves (rows, what a row reads) is checked
// here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "arguments.h"
#include "bound_step.h"
#include "bound_tick.h"
#include "bound_trees.h"
#include "changes.h"
#include "examples.h"
#include "kernels.h"
#include "likelihood.h"
#include "mcmc.h"
#include "tick.h"
#include "torch_normal.h"
#include "ulam/row.h"
#include "walk.h"

namespace py = pybind11;
using namespace ulam::cpu;
using ulam::Advance, ulam::Affine, ulam::Blend, ulam::Fill, ulam::LookUp, ulam::Reduce, ulam::Step;

namespace {

const Kernels* g_kernels = nullptr;

[[noreturn]] void throw_outside(int64_t row, int64_t chain, int64_t rows) {
  throw py::index_error("row: got " + std::to_string(row) + " for chain " + std::to_string(chain) +
                        ", expected a row of the table of " + std::to_string(rows));
}

// Raises unless each row is in the table, and what its flags say that it reads (`reads` of flags and coefficients) is
// given.
template <class Read>
void check_rows(const Step& s, const Read reads) {
  for (int64_t b = 0; b < s.chains; ++b) {
    const int64_t row = s.row[b];
    const auto here = [&] { return "row " + std::to_string(row) + " of chain " + std::to_string(b); };
    if (row < 0 || row >= s.rows) throw_outside(row, b, s.rows);
    const uint32_t flags = reads(static_cast<uint32_t>(s.flags[row]), s.coef + row * ulam::row_width(s.registers));
    if ((flags & ulam::kReadsModel) && !s.model)
      throw py::value_error("model: got None, expected the network's output, which " + here() + " reads");
    if ((flags & ulam::kLearned) && (!s.model || s.model_stride < 2 * s.elements))
      throw py::value_error(std::string("model: got ") + (s.model ? "as many channels as the state" : "None") +
                            ", expected twice as many (m, then v): " + here() + " has a learned variance");
    if ((flags & ulam::kReadsNoise) && !s.noise && !(s.seed && s.chain && s.draw))
      throw py::value_error("seed, chain, draw: got None, expected int64 tensors [B] (or noise): " + here() +
                            " reads noise");
    if ((flags & ulam::kReduced) && !s.scales)
      throw py::value_error("scales: got None, expected what reduce() gives: " + here() + " has a reduction");
  }
}

// Raises unless each chain's row is in a table of so many rows.
void check_rows_inside(const int64_t* row, int64_t chains, int64_t rows, int threads) {
  const int64_t b = first_outside(*g_kernels, row, chains, rows, threads);
  if (b < chains) throw_outside(row[b], b, rows);
}

// Raises unless an operation's arrays hold what it can use.
template <class Arguments>
void check(const Arguments&, int) {}
void check(const Step& s, int) {
  check_rows(s, [](uint32_t flags, const float*) { return flags; });
}
void check(const Reduce& s, int) {
  check_rows(s.step, [](uint32_t flags, const float* coef) { return ulam::reduction_reads(flags, coef); });
}
void check(const Blend& s, int threads) {
  if (s.row) check_rows_inside(s.row, s.chains, s.rows, threads);
}
void check(const LookUp& s, int threads) { check_rows_inside(s.row, s.chains, s.rows, threads); }

// The kernels are looked up while the GIL is held, and run without it.
template <class Arguments>
auto checked(void (*operation)(const Kernels&, const Arguments&, int)) {
  return [operation](const Arguments& s, int threads) {
    check(s, threads);
    const Kernels& kernels = *g_kernels;
    py::gil_scoped_release release;
    operation(kernels, s, threads);
  };
}

void check_step(const Step& s) { check(s, 1); }
void run_checked_step(const Step& s, int threads) { step(*g_kernels, s, threads); }
void run_checked_look_up(const LookUp& s, int threads) {
  check(s, threads);
  look_up(*g_kernels, s, threads);
}
void run_tree_leap(const ulam::TreeLeap& s, int threads) { tree_leap(*g_kernels, s, threads); }
void run_tree_run(const ulam::TreeRun& s, int threads) { tree_run(*g_kernels, s, threads); }
void run_walk(const ulam::Walk& s, int threads) { walk(*g_kernels, s, threads); }
void run_call(const ulam::NetworkCall& s, int threads) { call_network(*g_kernels, s, threads); }
void run_advance(const Advance& s, int threads) { advance(*g_kernels, s, threads); }

bool fill_torch_normal(uintptr_t out, int64_t count, uintptr_t state, int64_t state_bytes, int threads) {
  const Kernels& kernels = *g_kernels;
  py::gil_scoped_release unlocked;
  auto& generator = *ulam::pointer<TorchState>(state);
  return torch_normal(kernels, ulam::pointer<float>(out), count, generator, state_bytes, threads);
}

py::list instruction_sets() {
  py::list names;
  for (const Kernels* const* k = usable_kernels(); *k; ++k) names.append((*k)->name);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (const Kernels* const* k = usable_kernels(); *k; ++k)
    if (name == (*k)->name) {
      g_kernels = *k;
      return;
    }
  throw py::value_error("name: got '" + name + "', expected one of instruction_sets()");
}

py::tuple noise_checksums(uint64_t first, uint64_t count, int threads) {
  if (first % 1024 || count % 1024 || first + count > (1ull << 32))
    throw py::value_error("first, count: got " + std::to_string(first) + ", " + std::to_string(count) +
                          ", expected multiples of 1024 within [0, 2^32]");
  uint64_t sums[3] = {};
  {
    const Kernels& kernels = *g_kernels;
    py::gil_scoped_release unlocked;
    hash_noise(kernels, first, count, sums, threads);
  }
  return py::make_tuple(sums[0], sums[1], sums[2]);
}

py::bytes digest(const std::vector<uint64_t>& addresses, const std::vector<uint64_t>& bytes) {
  if (addresses.size() != bytes.size()) throw py::value_error("bytes: got another number than of addresses");
  unsigned char out[kDigestBytes] = {};
  {
    const Kernels& kernels = *g_kernels;
    py::gil_scoped_release unlocked;
    kernels.digest(addresses.data(), bytes.data(), static_cast<int64_t>(bytes.size()), out);
  }
  return py::bytes(reinterpret_cast<const char*>(out), sizeof out);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Native CPU operations of ulam_kernels, on raw pointers.";
#if defined(__FAST_MATH__)
  throw py::import_error("ulam_kernels._cpu was compiled with fast-math, which changes results: rebuild without it");
#endif
  for (const Kernels* const* k = usable_kernels(); *k; ++k)
    if (const char* difference = self_check(**k))
      throw py::import_error(std::string("ulam_kernels._cpu was miscompiled (") + (*k)->name + "): " + difference +
                             "; rebuild it without fast-math options, or with another compiler");
  g_kernels = *usable_kernels();
#define ULAM_REGISTER(operation, Arguments)                                              \
  m.def(#operation, ulam::function_of<int>(static_cast<const ulam::Arguments*>(nullptr), \
                                           checked<ulam::Arguments>(&ulam::cpu::operation)));
  ULAM_OPERATIONS(ULAM_REGISTER)
#undef ULAM_REGISTER
  ulam::register_bound_step<&check_step, &run_checked_step>(m);
  ulam::register_walk<&run_walk>(m);
  ulam::register_network_call<&run_call>(m);
  ulam::register_bound_trees<&run_tree_leap, &run_tree_run>(m);
  ulam::quick::register_quick(m, {run_checked_look_up, is_small}, {run_advance, is_small});
  ulam::quick::register_examples(m, {check_step, run_checked_step});
  ulam::quick::register_bound_tick(m);
  ulam::register_changes(m);
  m.def("torch_normal", &fill_torch_normal, "The normals of torch's CPU generator: see torch_normal.h.");
  m.def("instruction_sets", &instruction_sets, "The instruction sets usable here, fastest first.");
  m.def("instruction_set", [] { return g_kernels->name; }, "The instruction set in use.");
  m.def("panel_columns", [] { return g_kernels->panel; }, "Columns of a network's packed weights that lie together.");
  m.def("use_instruction_set", &use_instruction_set, "Choose one of instruction_sets(), for tests and benchmarks.");
  m.def("digest", &digest, "What stands for the bytes of arrays, by their addresses: another where they have changed.");
  m.def(
      "multiply_adds",
      [](int64_t rounds, int threads) {
        const py::gil_scoped_release unlocked;
        return multiply_adds(*g_kernels, rounds, threads);
      },
      "Rounds of fused multiply-adds on every thread; how many floating-point operations they are.");
  m.def("noise_checksums", &noise_checksums,
        "Checksums of radius, cosine and sine over the words [first, first + count), as the noise standard "
        "defines.");
}
