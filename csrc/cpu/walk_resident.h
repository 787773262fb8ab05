// Tiles of chains, a lane a chain: in memory from row to row, or with their registers on chip. Part of kernels_impl.h.
#pragma once

#include <new>

#include "walk_tile.h"

namespace ulam::cpu {
namespace {

// The vectors of the tile's chains side by side, [width][lanes]; lanes without a chain have the first one's.
template <int lanes>
inline const float* side_by_side(const Tile& tile, const float* from, const int64_t* index, int64_t width, float* to) {
  if (!from) return nullptr;
  for (int c = 0; c < lanes; ++c) {
    const float* const own = from + index[c < tile.count ? c : 0] * width;
    for (int64_t i = 0; i < width; ++i) to[i * lanes + c] = own[i];
  }
  return to;
}

template <int lanes>
inline void to_lane(const float* from, int64_t count, int c, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i * lanes + c] = from[i];
}
template <int lanes>
inline void from_lane(const float* from, int64_t count, int c, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * lanes + c];
}

// Chains at rows of their own: their states stay in memory. rest: [lanes][outputs] twice.
template <class V, int M>
void walk_mixed(const Plan& plan, Tile& tile, bool reduces, float* slots, float* vectors, float* rest) {
  constexpr int L = M * V::width;
  const Walk& s = tile.s;
  LanesNetwork<V, M> network(plan, slots);
  const int64_t n = s.step.elements;
  const bool learned = plan.outputs != plan.inputs;
  float *const own = vectors + plan.row_width * L, *const other = own + plan.chain_width * L;
  const float* const cond = side_by_side<L>(tile, s.chain_vectors, tile.chains, plan.chain_width, own);
  const float* const uncond = side_by_side<L>(tile, s.uncond_vectors, tile.chains, plan.chain_width, other);
  std::memset(network.value(0), 0, sizeof(float) * n * L);
  const auto outputs = [&](const float* row, const float* chain, float* to) {
    const float* const out = network.evaluate(row, true, chain);
    for (int c = 0; c < tile.count; ++c) from_lane<L>(out, plan.outputs, c, to + c * plan.outputs);
    return to;
  };
  for (int64_t step = 0; step < s.count; ++step, tile.go_on()) {
    const float* const row = side_by_side<L>(tile, s.row_vectors, tile.row, plan.row_width, vectors);
    for (int c = 0; c < tile.count; ++c)
      if (!tile.idle(c)) to_lane<L>(tile.input(c), n, c, network.value(0));
    const float *m = nullptr, *u = nullptr;
    if (tile.reads_cond(learned)) m = outputs(row, cond, rest);
    if (s.uncond_vectors && tile.reads_uncond()) u = outputs(row, uncond, rest + L * plan.outputs);
    if (!m && !u) continue;  // all are idle
    stop_bad(tile, m, u, plan.outputs, plan.outputs);
    step_tile<V>(tile, m ? m : u, s.uncond_vectors ? (u ? u : m) : nullptr, plan.outputs, reduces);
    write_known(tile);
  }
}

// Whether all chains are at one row, and stay together.
inline bool is_uniform(const Tile& tile) {
  for (int c = 0; c < tile.count; ++c)
    if (tile.row[c] != tile.row[0] || tile.row_advance[c] != tile.row_advance[0] ||
        tile.draw_advance[c] != tile.draw_advance[0] || tile.row[c] <= kIdleRow || tile.row_advance[c] < 0)
      return false;
  return true;
}

// Chains at one row: their registers stay on chip, [R][n][lanes]. The same bits as the fused step's.
template <class V, int M, int R>
class Resident {
  static constexpr int W = V::width, L = M * W;
  using f = typename V::f;

 public:
  Resident(const Plan& plan, Tile& tile, float* slots, float* vectors, float* rest)
      : plan_(plan),
        tile_(tile),
        s_(tile.s),
        n_(s_.step.elements),
        network_(plan, slots),
        x_(network_.value(0)),
        kept_(network_.value(plan.slots)),
        registers_(rest),
        z_(rest + R * n_ * L),
        known_(z_ + M * (n_ + 8) * W),
        is_known_(known_ + n_ * L),
        learned_(plan.outputs != plan.inputs),
        row_(tile.row[0]) {
    float *const own = vectors + plan.row_width * L, *const other = own + plan.chain_width * L;
    cond_ = side_by_side<L>(tile, s_.chain_vectors, tile.chains, plan.chain_width, own);
    uncond_ = side_by_side<L>(tile, s_.uncond_vectors, tile.chains, plan.chain_width, other);
    for (int c = 0; c < L; ++c) {
      const int from = c < tile.count ? c : 0;
      alive_[c] = c < tile.count;
      weight_[c] = tile.weight[from];
      for (int j = 0; j < R; ++j) to_lane<L>(state(j, from), n_, c, registers_ + j * n_ * L);
      if (s_.known) {
        to_lane<L>(s_.known + tile.chains[from] * n_, n_, c, known_);
        const uint8_t* const mask = s_.mask + tile.chains[from] * s_.mask_stride;
        for (int64_t i = 0; i < n_; ++i) is_known_[i * L + c] = mask[i] ? 1.0f : 0.0f;
      }
      to_lane<L>(tile.input(from), n_, c, x_);
      if (s_.step.seed) {
        ids_[0][c] = s_.step.seed[tile.chains[from]];
        ids_[1][c] = s_.step.chain[tile.chains[from]];
        ids_[2][c] = tile.draw[from];
      }
    }
  }

  void run() {
    if (!s_.step.seed) return walk(static_cast<ChainNoise<V>*>(nullptr));
    alignas(64) unsigned char memory[M * sizeof(ChainNoise<V>)];
    ChainNoise<V>* const noise = reinterpret_cast<ChainNoise<V>*>(memory);
    for (int m = 0; m < M; ++m)
      new (noise + m) ChainNoise<V>({ids_[0] + m * W, ids_[1] + m * W, ids_[2] + m * W}, 0, W);
    walk(noise);
  }

 private:
  float* state(int j, int c) const {
    return static_cast<float*>(s_.step.state) + (j * s_.step.chains + tile_.chains[c]) * n_;
  }

  void walk(ChainNoise<V>* noise) {
    const int64_t width = row_width(R), advance = tile_.row_advance[0];
    const uint64_t draws = static_cast<uint64_t>(tile_.draw_advance[0]);
    uint64_t ahead = 0;
    int left = tile_.count;
    for (int64_t step = 0; step < s_.count && left > 0; ++step, row_ += advance, ahead += draws, tile_.go_on()) {
      evaluate();
      left -= stop_bad_lanes();
      const uint32_t flags = static_cast<uint32_t>(s_.step.flags[row_]);
      if (!(flags & kWrites)) continue;
      const bool reads_noise = flags & kReadsNoise;
      for (int m = 0; m < M && reads_noise; ++m) {
        noise[m].start(ahead);
        normals_of<V>(noise[m], static_cast<int>((n_ + 3) / 4), false, lanes_of(m));
      }
      step_lanes(Row<R>(s_.step.coef + row_ * width, flags));
      if (s_.known) write_known_lanes(V::set(s_.step.coef[row_ * width + kNextScale]));
    }
    for (int c = 0; c < tile_.count; ++c)
      if (alive_[c]) leave(c);
  }

  float (*lanes_of(int m) const)[W] { return reinterpret_cast<float (*)[W]>(z_ + m * (n_ + 8) * W); }

  // m_ and u_, as far as chains read them.
  void evaluate() {
    const float* const row = s_.row_vectors ? s_.row_vectors + row_ * plan_.row_width : nullptr;
    m_ = u_ = nullptr;
    if (tile_.reads_cond(learned_)) m_ = network_.evaluate(row, false, cond_);
    if (!s_.uncond_vectors || !tile_.reads_uncond()) return;
    if (m_) m_ = static_cast<float*>(std::memcpy(kept_, m_, sizeof(float) * plan_.outputs * L));
    u_ = network_.evaluate(row, false, uncond_);
  }

  // x - x is 0 where x is finite, else NaN.
  void mark(const float* out, bool (&bad)[L]) const {
    for (int m = 0; m < M; ++m) {
      f sum = V::set(0.0f);
      for (int64_t i = 0; out && i < plan_.outputs; ++i) {
        const f x = V::load(out + i * L + m * W);
        sum = V::add(sum, V::sub(x, x));
      }
      alignas(64) float each[W];
      V::store(each, kFloat32, 0, sum);
      for (int l = 0; l < W; ++l) bad[m * W + l] = each[l] != 0.0f;
    }
  }

  int stop_bad_lanes() {
    bool bad_m[L], bad_u[L];
    mark(m_, bad_m);
    mark(u_, bad_u);
    int stopped = 0;
    for (int c = 0; c < tile_.count; ++c)
      if (alive_[c] && must_stop(bad_m[c], bad_u[c], weight_[c])) {
        leave(c);
        tile_.stop(c);
        alive_[c] = false;
        ++stopped;
      }
    return stopped;
  }

  // Back to memory.
  void leave(int c) {
    for (int j = 0; j < R; ++j) from_lane<L>(registers_ + j * n_ * L, n_, c, state(j, c));
    if (s_.step.net_in) from_lane<L>(x_, n_, c, static_cast<float*>(s_.step.net_in) + tile_.chains[c] * n_);
  }

  void step_lanes(const Row<R>& row) {
    for (int m = 0; m < M; ++m) {
      const f weight = V::load(weight_ + m * W);
      for (int64_t i = 0; i < n_; ++i) element(row, i * L + m * W, weight, lanes_of(m)[i]);
    }
  }

  void write_known_lanes(f scale) {
    for (int64_t at = 0; at < n_ * L; at += W) {
      const f is_known = V::load(is_known_ + at), known = V::load(known_ + at);
      const f next = s_.step.net_in ? V::mul(scale, known) : known;
      V::store(registers_, kFloat32, at, V::where_equal(is_known, 1.0f, known, V::load(registers_ + at)));
      V::store(x_, kFloat32, at, V::where_equal(is_known, 1.0f, next, V::load(x_ + at)));
    }
  }

  ULAM_HD void element(const Row<R>& row, int64_t at, f weight, const float* noise) {
    f r[R], x0 = V::set(0.0f), z = V::set(0.0f);
    f out = m_ ? V::load(m_ + at) : V::load(u_ + at);
    if (u_ && m_) {
      const f u = V::load(u_ + at), mixed = V::fma(weight, V::sub(out, u), u);
      out = V::where_equal(weight, 1.0f, out, V::where_equal(weight, 0.0f, u, mixed));
    }
    ULAM_UNROLL
    for (int j = 0; j < R; ++j) r[j] = V::load(registers_ + j * n_ * L + at);
    if (row.flags & kUsesX0) x0 = estimate_x0<V>(row.c, r[0], out);
    if (row.flags & kReadsNoise) {
      z = V::load(noise);
      if (row.flags & kLearned) z = learned_noise<V>(row, V::load(m_ + n_ * L + at), z);
    }
    update_registers<V>(row, r, x0, out, z);
    ULAM_UNROLL
    for (int j = 0; j < R; ++j)
      if (row.flags >> j & 1) V::store(registers_ + j * n_ * L, kFloat32, at, r[j]);
    V::store(x_, kFloat32, at, s_.step.net_in ? V::mul(V::set(row.c[kNextScale]), r[0]) : r[0]);
  }

  const Plan& plan_;
  Tile& tile_;
  const Walk& s_;
  const int64_t n_;
  LanesNetwork<V, M> network_;
  float *const x_, *const kept_, *const registers_, *const z_, *const known_, *const is_known_;
  const bool learned_;
  int64_t row_;
  const float *cond_, *uncond_, *m_ = nullptr, *u_ = nullptr;
  bool alive_[L];
  alignas(64) float weight_[L];
  int64_t ids_[3][L];
};

}  // namespace
}  // namespace ulam::cpu
