// Whole chains of a small network: tiles of chains walk over their rows, each tile for itself. Part of kernels_impl.h.
#pragma once

#include "walk_resident.h"

namespace ulam::cpu {
namespace {

template <class V, int M>
void walk_tile(const Plan& plan, Tile& tile, bool reduces) {
  using Network = LanesNetwork<V, M>;
  const int64_t n = tile.s.step.elements, L = Network::lanes;
  const int64_t columns = plan.room() * plan.max_width + plan.row_width + 2 * plan.chain_width;
  const int64_t resident = (tile.s.step.registers + 1 + (tile.s.known ? 2 : 0)) * n + 8;
  float* const slots = scratch_of((columns + resident) * L + 2 * L * plan.outputs);
  float* const vectors = slots + plan.room() * plan.max_width * L;
  float* const rest = slots + columns * L;
  if (!reduces && is_uniform(tile))
    with_registers(tile.s.step.registers,
                   [&](auto registers) { Resident<V, M, registers>(plan, tile, slots, vectors, rest).run(); });
  else
    walk_mixed<V, M>(plan, tile, reduces, slots, vectors, rest);
}

template <class V>
void walk_few(const Plan& plan, Tile& tile, bool reduces) {
  const auto scratch = [&](int C) { return scratch_of(plan.room() * size_t{kColumns} * C); };
  if (tile.count == 1)
    walk_columns<V, 1>(plan, tile, reduces, scratch(1));
  else if (tile.count == 2)
    walk_columns<V, 2>(plan, tile, reduces, scratch(2));
  else if (tile.count <= 4)
    walk_columns<V, 4>(plan, tile, reduces, scratch(4));
  else if constexpr (V::width >= 16)
    walk_columns<V, 8>(plan, tile, reduces, scratch(8));
}

// The chains active[begin] to active[end].
template <class V>
void walk_units(const Walk& s, const int64_t* active, int64_t begin, int64_t end) {
  constexpr int W = V::width;
  const Plan plan(s.code, s.data, s.packed, kPanel<V>);
  uint32_t flags = 0;
  for (int64_t row = 0; row < s.step.rows; ++row) flags |= static_cast<uint32_t>(s.step.flags[row]);
  const bool reduces = flags & kReduced;
  for (int64_t at = begin, count; at < end; at += count) {
    count = end - at < 2 * W ? end - at : 2 * W;
    Tile tile(s, active + at, static_cast<int>(count));
    if (W > 1 && count <= W / 2)
      walk_few<V>(plan, tile, reduces);
    else if (count <= W)
      walk_tile<V, 1>(plan, tile, reduces);
    else
      walk_tile<V, 2>(plan, tile, reduces);
    tile.store();
  }
}

}  // namespace
}  // namespace ulam::cpu
