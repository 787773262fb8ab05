// Whole chains of a small network: the arguments from Python, in the order of kernels/ulam_kernels/cpu/walk.py, and
// what only the arrays themselves tell.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "arguments.h"
#include "ulam/row.h"
#include "ulam/tick.h"
#include "ulam/walk.h"

namespace ulam {

// Raises unless every row that a chain executes is in the table, and what it reads is there.
inline void check_walk(const Walk& s) {
  const Step& step = s.step;
  const int64_t outputs = s.code[8 + s.code[3]];
  uint32_t lacking = 0, all = 0;
  if (!step.seed) lacking |= kReadsNoise;
  if (outputs < 2 * step.elements) lacking |= kLearned;
  for (int64_t row = 0; row < step.rows; ++row) all |= static_cast<uint32_t>(step.flags[row]);
  for (int64_t b = 0; b < step.chains; ++b) {
    const int64_t first = s.cursor[kRow * step.chains + b], advance = s.cursor[kRowAdvance * step.chains + b];
    const auto outside = [&](int64_t row) { return row < 0 || row >= step.rows; };
    const auto refuse = [&](int64_t row) {
      throw pybind11::index_error("cursor: got row " + std::to_string(row) + " for chain " + std::to_string(b) +
                                  ", expected a row of the table of " + std::to_string(step.rows));
    };
    if (outside(first)) refuse(first);
    int64_t moved = 0, last = first;
    if (s.count > 0 && (__builtin_mul_overflow(s.count - 1, advance, &moved) ||
                        __builtin_add_overflow(first, moved, &last) || outside(last)))
      refuse(last);
    if (!(all & lacking) || (first == kIdleRow && advance == 0)) continue;
    for (int64_t k = 0, row = first; k < s.count; ++k, row += advance) {
      const uint32_t flags = static_cast<uint32_t>(step.flags[row]) & lacking;
      if (row == kIdleRow || !flags) continue;
      const std::string here = "row " + std::to_string(row) + " of chain " + std::to_string(b);
      if (flags & kLearned)
        throw pybind11::value_error("network: got an output as wide as x, expected one twice as wide (m, then v): " +
                                    here + " has a learned variance");
      throw pybind11::value_error("seed, chain: got None, expected int64 tensors [B]: " + here + " reads noise");
    }
  }
}

template <void (*run)(const Walk&, int threads)>
void register_walk(pybind11::module_& m) {
  m.def(
      "walk",
      [](int64_t chains, int64_t elements, int registers, uintptr_t states, uintptr_t coef, uintptr_t flags,
         int64_t rows, uintptr_t cursor, int64_t steps, uintptr_t net_in, uintptr_t seed, uintptr_t chain,
         uintptr_t code, uintptr_t data, uintptr_t packed, int64_t work, uintptr_t row_vectors, uintptr_t chain_vectors,
         uintptr_t uncond_vectors, uintptr_t guidance, uintptr_t known, uintptr_t mask, int64_t mask_stride,
         int threads) {
        Walk s{};
        s.step.chains = chains;
        s.step.elements = elements;
        s.step.registers = registers;
        s.step.state = pointer<void>(states);
        s.step.source = s.step.state;
        s.step.coef = pointer<const float>(coef);
        s.step.flags = pointer<const int32_t>(flags);
        s.step.rows = rows;
        s.step.net_in = pointer<void>(net_in);
        s.step.seed = pointer<const int64_t>(seed);
        s.step.chain = pointer<const int64_t>(chain);
        s.step.guidance = pointer<const float>(guidance);
        s.cursor = pointer<int64_t>(cursor);
        s.count = steps;
        s.code = pointer<const int64_t>(code);
        s.data = pointer<const float>(data);
        s.packed = pointer<const float>(packed);
        s.work = work;
        s.row_vectors = pointer<const float>(row_vectors);
        s.chain_vectors = pointer<const float>(chain_vectors);
        s.uncond_vectors = pointer<const float>(uncond_vectors);
        s.known = pointer<const float>(known);
        s.mask = pointer<const uint8_t>(mask);
        s.mask_stride = mask_stride;
        check_walk(s);
        const pybind11::gil_scoped_release unlocked;
        run(s, threads);
      },
      "Whole chains of a small network: see ulam/walk.h.");
}

template <void (*run)(const NetworkCall&, int threads)>
void register_network_call(pybind11::module_& m) {
  m.def(
      "call_network",
      [](int64_t chains, uintptr_t x, uintptr_t code, uintptr_t data, uintptr_t packed, int64_t work,
         uintptr_t row_vector, uintptr_t chain_vectors, uintptr_t out, uintptr_t energy, int threads) {
        const NetworkCall s{chains,
                            work,
                            pointer<const int64_t>(code),
                            pointer<const float>(data),
                            pointer<const float>(packed),
                            pointer<const float>(x),
                            pointer<const float>(row_vector),
                            pointer<const float>(chain_vectors),
                            pointer<float>(out),
                            pointer<float>(energy)};
        const pybind11::gil_scoped_release unlocked;
        run(s, threads);
      },
      "A small network at the states of all chains: see ulam/walk.h.");
}

}  // namespace ulam
