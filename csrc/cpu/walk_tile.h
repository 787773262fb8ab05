// Where the chains of a tile are, and the fused step on them where they lie in memory. Part of kernels_impl.h.
#pragma once

#include "network_call.h"
#include "reduce.h"
#include "step.h"
#include "tick.h"

namespace ulam::cpu {
namespace {

constexpr int kMostLanes = 32;

// What an array that begins at `base` takes for its address when its elements are counted from `first` on.
template <class T>
inline const T* counted_from(const T* base, int64_t first) {
  return reinterpret_cast<const T*>(reinterpret_cast<uintptr_t>(base) - first * sizeof(T));
}

// The cursors of some chains. As in `advance`, a chain that stops keeps its state and is at the idle row from then on.
struct Tile {
  const Walk& s;
  const int64_t* chains;  // their numbers, ascending
  int count;
  int64_t row[kMostLanes] = {}, draw[kMostLanes], row_advance[kMostLanes], draw_advance[kMostLanes];
  int64_t failed[kMostLanes];
  float weight[kMostLanes] = {};  // of guidance

  Tile(const Walk& s, const int64_t* chains, int count) : s(s), chains(chains), count(count) {
    for (int c = 0; c < count; ++c) {
      row[c] = line(kRow, c);
      draw[c] = line(kDraw, c);
      row_advance[c] = line(kRowAdvance, c);
      draw_advance[c] = line(kDrawAdvance, c);
      failed[c] = line(kFailed, c);
      weight[c] = s.uncond_vectors ? s.step.guidance[chains[c]] : 1.0f;
    }
  }
  void store() const {
    for (int c = 0; c < count; ++c) {
      line(kRow, c) = row[c];
      line(kDraw, c) = draw[c];
      line(kRowAdvance, c) = row_advance[c];
      line(kDrawAdvance, c) = draw_advance[c];
      line(kFailed, c) = failed[c];
    }
  }
  bool idle(int c) const { return c >= count || row[c] == kIdleRow; }
  void stop(int c) {
    failed[c] = row[c];
    row[c] = row_advance[c] = draw_advance[c] = 0;
  }
  void go_on() {
    for (int c = 0; c < count; ++c) {
      row[c] = plus(row[c], row_advance[c]);
      draw[c] = plus(draw[c], draw_advance[c]);
    }
  }
  static int64_t plus(int64_t a, int64_t b) {  // which wraps
    return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
  }

  // Whether an evaluation is read by any chain: v of a learned variance is the conditional one's.
  bool reads_cond(bool learned) const {
    for (int c = 0; c < count; ++c)
      if (!idle(c) && (learned || weight[c] != 0.0f)) return true;
    return false;
  }
  bool reads_uncond() const {
    for (int c = 0; c < count; ++c)
      if (!idle(c) && weight[c] != 1.0f) return true;
    return false;
  }

  const float* input(int c) const {
    const Step& step = s.step;
    return static_cast<const float*>(step.net_in ? step.net_in : step.state) + chains[c] * step.elements;
  }

 private:
  int64_t& line(int k, int c) const { return s.cursor[k * s.step.chains + chains[c]]; }
};

// Stops the chains whose outputs, `stride` apart, are not finite.
inline void stop_bad(Tile& tile, const float* m, const float* u, int64_t stride, int64_t outputs) {
  const ExponentBits exponent = exponent_bits(kFloat32);
  const auto fails = [&](const float* out, int c) {
    return out && !all_finite(reinterpret_cast<const char*>(out + c * stride), outputs * 4, exponent);
  };
  for (int c = 0; c < tile.count; ++c) {
    const float w = tile.weight[c];
    if (!tile.idle(c) && must_stop(w != 0.0f && fails(m, c), w != 1.0f && fails(u, c), w)) tile.stop(c);
  }
}

// The noise of chains of few elements: a group of normals by itself costs less than its blocks one after another.
template <class V>
const float* noise_of_few(const Step& s, int64_t begin, int64_t end, float* made) {
  const float* const noise = counted_from(made, begin * s.elements);
  for (int64_t b = begin; b < end; ++b, made += s.elements) {
    if (!(static_cast<uint32_t>(s.flags[s.row[b]]) & kReadsNoise)) continue;
    typename V::f z[V::vectors];
    normals<V>(stream_of(s, b), 0, z);
    for (int k = 0; k < V::vectors; ++k) V::store(made, kFloat32, k * V::width, z[k]);
  }
  return noise;
}

// The fused step of the chains that are not idle, on the outputs of the network, `stride` apart.
template <class V>
void step_tile(const Tile& tile, const float* m, const float* u, int64_t stride, bool reduces) {
  const Step& all = tile.s.step;
  for (int p = 0, q; p < tile.count; p = q) {
    q = p + 1;
    if (tile.idle(p)) continue;
    while (q < tile.count && !tile.idle(q) && tile.chains[q] == tile.chains[q - 1] + 1) ++q;
    const int64_t b = tile.chains[p], first = b - p, end = b + q - p;
    Step s = all;
    s.row = counted_from(tile.row, first);
    s.draw = counted_from(tile.draw, first);
    s.model = counted_from(m, first * stride);
    s.uncond = u ? counted_from(u, first * stride) : nullptr;
    s.model_stride = stride;
    alignas(64) float made[kMostLanes * kGroup<V>];
    if (!s.noise && !reduces && V::width > 1 && s.elements <= kGroup<V>) s.noise = noise_of_few<V>(s, b, end, made);
    alignas(64) float scales[4 * kMostLanes];
    if (reduces) {
      uint32_t scratch[2 * 256];
      float* const out = const_cast<float*>(counted_from(scales, 4 * first));
      if constexpr (HasDots<V>::value)
        V::operations->reduce(Reduce{s, out}, scratch, b, end);
      else
        reduce_chains<V>(Reduce{s, out}, scratch, b, end);
      s.scales = out;
    }
    if constexpr (HasDots<V>::value)
      V::operations->step(s, s.elements, b, end);
    else
      step_units<V>(s, s.elements, b, end);
  }
}

// Writes the known elements back, of chains that the row has stepped.
inline void write_known(const Tile& tile) {
  const Walk& s = tile.s;
  const int64_t n = s.step.elements, width = row_width(s.step.registers);
  for (int c = 0; s.known && c < tile.count; ++c) {
    if (tile.idle(c) || !(static_cast<uint32_t>(s.step.flags[tile.row[c]]) & kWrites)) continue;
    const float* const known = s.known + tile.chains[c] * n;
    const uint8_t* const mask = s.mask + tile.chains[c] * s.mask_stride;
    float* const x = static_cast<float*>(s.step.state) + tile.chains[c] * n;
    float* const net_in = s.step.net_in ? static_cast<float*>(s.step.net_in) + tile.chains[c] * n : nullptr;
    const float scale = s.step.coef[tile.row[c] * width + kNextScale];
    for (int64_t i = 0; i < n; ++i) {
      if (!mask[i]) continue;
      x[i] = known[i];
      if (net_in) net_in[i] = scale * known[i];
    }
  }
}

// A few chains, a lane a column.
template <class V, int C>
void walk_columns(const Plan& plan, Tile& tile, bool reduces, float* scratch) {
  constexpr int kVectors = (V::width >= 16 ? 16 : 8) / C;
  const Walk& s = tile.s;
  ColumnsNetwork<V, C, kVectors> network(plan, scratch);
  float* const kept = network.value(plan.slots);  // m, while the other branch is evaluated
  const int64_t n = s.step.elements, bytes = n * sizeof(float);
  const bool learned = plan.outputs != plan.inputs;
  for (int c = 0; c < C; ++c) std::memset(network.value(0) + c * kColumns, 0, bytes);
  for (int64_t step = 0; step < s.count; ++step, tile.go_on()) {
    const float *rows[C], *own[C], *other[C];
    for (int c = 0; c < C; ++c) {
      const int from = c < tile.count ? c : 0;
      rows[c] = s.row_vectors + tile.row[from] * plan.row_width;
      own[c] = s.chain_vectors + tile.chains[from] * plan.chain_width;
      other[c] = s.uncond_vectors ? s.uncond_vectors + tile.chains[from] * plan.chain_width : nullptr;
      if (!tile.idle(c)) std::memcpy(network.value(0) + c * kColumns, tile.input(c), bytes);
    }
    const float *m = nullptr, *u = nullptr;
    if (tile.reads_cond(learned)) m = network.evaluate(rows, own);
    if (s.uncond_vectors && tile.reads_uncond()) {
      if (m) m = static_cast<float*>(std::memcpy(kept, m, sizeof(float) * C * kColumns));
      u = network.evaluate(rows, other);
    }
    if (!m && !u) continue;  // all are idle
    stop_bad(tile, m, u, kColumns, plan.outputs);
    step_tile<V>(tile, m ? m : u, s.uncond_vectors ? (u ? u : m) : nullptr, kColumns, reduces);
    write_known(tile);
  }
}

}  // namespace
}  // namespace ulam::cpu
