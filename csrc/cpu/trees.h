// The leaves of the No-U-Turn sampler's trees: everything but the energy, a group of chains at a time; and whole chains
// of a built-in density. Part of kernels_impl.h.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "mcmc_steps.h"
#include "ulam/trees.h"

namespace ulam::cpu {
namespace {

constexpr double kNone = -std::numeric_limits<double>::infinity();  // the logarithm of no weight

// sqrt(-2 ln u) of one Metropolis test.
inline float test_radius(int64_t seed, int64_t chain, uint64_t draw) {
  uint32_t w[4];
  const Stream stream = make_stream(static_cast<uint64_t>(seed), static_cast<uint64_t>(chain), draw, 0);
  philox_words<Scalar>(stream, kAcceptTag << 28, w);
  return radius<Scalar>(w[0]);
}

template <class V>
class TreeGroup {
  static constexpr int W = V::width;
  static constexpr int kDots = 6;

 public:
  TreeGroup(const Trees& trees, int64_t group)
      : t_(trees),
        n_(trees.elements),
        first_(group * W),
        lanes_(static_cast<int>(trees.chains - first_ < W ? trees.chains - first_ : W)) {}

  int64_t first() const { return first_; }
  int lanes() const { return lanes_; }

  bool any_live() const {
    bool any = false;
    for (int l = 0; l < lanes_; ++l) any |= t_.live[first_ + l];
    return any;
  }

  // To where the energy is evaluated next.
  void before() {
    for (int64_t b = first_; b < first_ + lanes_; ++b) {
      if (!t_.live[b]) continue;
      if (t_.fresh[b]) begin(b);
      if (t_.leaf[b] == 0) begin_doubling(b);
      const float step = t_.forward[b] ? t_.step[b] : -t_.step[b];
      kick(b, 0.5f * step, step, true);
    }
  }

  // What follows the group's energies and scores there.
  void after(const double* energy, const float* score) {
    alignas(64) double log_weight[W], before[W], total[W], probability[W];
    alignas(64) float r[W];
    int64_t seed[W], chain[W], draw[W];
    for (int l = 0; l < W; ++l) {
      const int64_t b = first_ + (l < lanes_ ? l : lanes_ - 1);
      log_weight[l] = kNone;
      seed[l] = t_.seed[b];
      chain[l] = t_.chain[b];
      draw[l] = static_cast<int64_t>(draw_of(b, kLeafStage));
      before[l] = t_.doubling_weight[b];
      if (l >= lanes_ || !t_.live[b]) continue;
      if (score != row(t_.here.score, first_)) std::memcpy(row(t_.here.score, b), score + l * n_, bytes());
      const float step = t_.forward[b] ? t_.step[b] : -t_.step[b];
      kick(b, 0.5f * step, 0.0f, false);
      const double error = (energy[l] + 0.5 * squared_norm(row(t_.here.v, b))) - t_.start[b];
      log_weight[l] = -error * static_cast<double>(t_.inverse_temperature[b]);
    }
    for (int l = 0; l < W; ++l) {
      probability[l] = exp_below(log_weight[l] > 0.0 ? 0.0 : log_weight[l]);
      total[l] = log_sum(before[l], is_fine(log_weight[l]) ? log_weight[l] : kNone);
    }
    test_radii<V>(Ids{seed, chain, draw}, 0, W, r);
    for (int l = 0; l < lanes_; ++l) {
      const int64_t b = first_ + l;
      t_.done[b] = false;
      if (!t_.live[b]) continue;
      const bool fine = is_fine(log_weight[l]);
      ++t_.leaps[b];
      t_.accepted[b] += probability[l] == probability[l] ? probability[l] : 0.0;
      if (fine && accepts(log_weight[l] - total[l], r[l])) {
        std::memcpy(row(t_.chosen, b), row(t_.here.x, b), bytes());
        std::memcpy(row(t_.chosen_score, b), row(t_.here.score, b), bytes());
        t_.chosen_energy[b] = energy[l];
      }
      t_.doubling_weight[b] = total[l];
      t_.diverged[b] = !fine;
      end_leaf(b, fine);
      if (t_.done[b] && t_.record.made) finish(b);
    }
  }

 private:
  static bool is_fine(double log_weight) {
    return log_weight >= -1000.0 && log_weight < std::numeric_limits<double>::infinity();
  }

  int64_t bytes() const { return n_ * static_cast<int64_t>(sizeof(float)); }
  float* row(float* of, int64_t b) const { return of + b * n_; }
  float* slot(float* of, int64_t b, int64_t k) const { return of + (b * (t_.max_depth + 1) + k) * n_; }

  uint64_t draw_of(int64_t b, int stage) const {
    const uint64_t number = (1ull << t_.depth[b]) + static_cast<uint64_t>(t_.leaf[b]);
    return static_cast<uint64_t>(t_.draw[b]) * kTreeLeaves + number * kDrawsPerStep + static_cast<uint64_t>(stage);
  }

  void kick(int64_t b, float size, float drift, bool drifts) const {
    for_vectors<V>(n_, KickDriftPiece{row(t_.here.x, b), row(t_.here.v, b), row(t_.here.score, b), t_.scale, nullptr,
                                      size, drift, 0.0f, 0.0f, drifts, false});
  }

  double squared_norm(const float* v) {
    const int64_t width = padded(1);
    for (int64_t from = 0; from < n_; from += kLanes) {
      const int64_t count = n_ - from < kLanes ? n_ - from : kLanes;
      for (int64_t l = 0; l < count; ++l) dots_[0][l] += static_cast<double>(v[from + l]) * v[from + l];
    }
    return halves(dots_[0], width);
  }

  // Begins the next transition, with a momentum of its own noise.
  void begin(int64_t b) {
    const Ids ids{t_.seed, t_.chain, t_.draw};
    alignas(64) float z[kPiece];
    float *const v = row(t_.here.v, b), *const reversed = slot(t_.before, b, 0);
    for (int64_t first = 0; first < n_; first += kPiece) {
      const int64_t count = n_ - first < kPiece ? n_ - first : kPiece;
      fill_piece<V>(ids, b, first, count, z);
      for (int64_t i = 0; i < count; ++i) v[first + i] = z[i] * t_.root_temperature[b];
    }
    for (int64_t i = 0; i < n_; ++i) reversed[i] = -v[i];
    std::memcpy(row(t_.here.x, b), row(t_.x, b), bytes());
    std::memcpy(row(t_.here.score, b), row(t_.score, b), bytes());
    std::memcpy(row(t_.there.x, b), row(t_.x, b), bytes());
    std::memcpy(row(t_.there.score, b), row(t_.score, b), bytes());
    std::memcpy(row(t_.there.v, b), v, bytes());
    t_.start[b] = t_.energy[b] + 0.5 * squared_norm(v);
    t_.directions[b] = directions(b);
    t_.weight[b] = t_.accepted[b] = 0.0;
    t_.depth[b] = t_.leaps[b] = t_.leaf[b] = 0;
    t_.moved[b] = t_.fresh[b] = false;
  }

  int64_t directions(int64_t b) const {
    int64_t bits = 0;
    const Stream stream = make_stream(static_cast<uint64_t>(t_.seed[b]), static_cast<uint64_t>(t_.chain[b]),
                                      static_cast<uint64_t>(t_.draw[b]) + kDirectionStage, 0);
    for (int k = 0; k < t_.max_depth; k += 4) {
      float z[4];
      normals<Portable>(stream, static_cast<uint32_t>(k >> 2), z);
      for (int j = 0; j < 4; ++j) bits |= static_cast<int64_t>(z[j] > 0.0f) << (k + j);
    }
    return bits;
  }

  // Goes to the end of the tree at which it grows next.
  void begin_doubling(int64_t b) {
    const bool forward = t_.directions[b] >> t_.depth[b] & 1;
    if (forward != t_.forward[b]) {
      std::swap_ranges(row(t_.here.x, b), row(t_.here.x, b) + n_, row(t_.there.x, b));
      std::swap_ranges(row(t_.here.v, b), row(t_.here.v, b) + n_, row(t_.there.v, b));
      std::swap_ranges(row(t_.here.score, b), row(t_.here.score, b) + n_, row(t_.there.score, b));
    }
    t_.forward[b] = forward;
    std::memcpy(slot(t_.first, b, 0), row(t_.there.v, b), bytes());
    std::memcpy(slot(t_.last, b, 0), row(t_.here.v, b), bytes());
    std::memset(row(t_.sum, b), 0, bytes());
    t_.doubling_weight[b] = kNone;
  }

  // Joins the leaf to the subtrees that it completes, and a doubling that is complete to the tree.
  void end_leaf(int64_t b, bool fine) {
    const int64_t leaf = t_.leaf[b];
    const int ones = __builtin_popcountll(leaf), completed = __builtin_ctzll(~leaf);
    const int own = ones + 1, begin = own - completed;
    const bool complete = leaf + 1 == int64_t{1} << t_.depth[b];
    float *const v = row(t_.here.v, b), *const sum = row(t_.sum, b);
    std::memcpy(slot(t_.first, b, own), v, bytes());
    std::memcpy(slot(t_.before, b, own), sum, bytes());
    for (int64_t i = 0; i < n_; ++i) sum[i] += v[i];
    bool bad = !fine, across = false;
    for (int k = ones; k >= begin - complete && !bad; --k)
      if (turns(b, k)) (k ? bad : across) = true;
    std::memcpy(slot(t_.last, b, begin), v, bytes());
    if (complete && !bad) join(b);
    t_.done[b] = bad || (complete && (across || t_.depth[b] == t_.max_depth));
    t_.leaf[b] = complete || t_.done[b] ? 0 : leaf + 1;
  }

  void join(int64_t b) {
    const float r = test_radius(t_.seed[b], t_.chain[b], draw_of(b, kDoublingStage));
    if (accepts(t_.doubling_weight[b] - t_.weight[b], r)) {
      std::memcpy(row(t_.x, b), row(t_.chosen, b), bytes());
      std::memcpy(row(t_.score, b), row(t_.chosen_score, b), bytes());
      t_.energy[b] = t_.chosen_energy[b];
      t_.moved[b] = true;
    }
    t_.weight[b] = log_sum(t_.weight[b], t_.doubling_weight[b]);
    float* const reversed = slot(t_.before, b, 0);
    const float* const sum = row(t_.sum, b);
    for (int64_t i = 0; i < n_; ++i) reversed[i] -= sum[i];
    ++t_.depth[b];
  }

  // Whether the subtree of slot k, which the leaf completes, turns: as a whole, or a half of it with the next state of
  // the other.
  bool turns(int64_t b, int k) {
    const float *const first = slot(t_.first, b, k), *const last = slot(t_.last, b, k);
    const float *const middle = slot(t_.first, b, k + 1), *const end = row(t_.here.v, b);
    const float *const before = slot(t_.before, b, k), *const between = slot(t_.before, b, k + 1);
    const float* const sum = row(t_.sum, b);
    const int64_t width = padded(kDots);
    for (int64_t from = 0; from < n_; from += kLanes) {
      const int64_t count = n_ - from < kLanes ? n_ - from : kLanes;
      for (int64_t l = 0; l < count; ++l) {
        const int64_t i = from + l;
        const float left = between[i] - before[i], right = sum[i] - between[i];
        const double whole = left + right, beyond = left + middle[i], behind = right + last[i];
        dots_[0][l] += first[i] * whole;
        dots_[1][l] += end[i] * whole;
        dots_[2][l] += first[i] * beyond;
        dots_[3][l] += middle[i] * beyond;
        dots_[4][l] += last[i] * behind;
        dots_[5][l] += end[i] * behind;
      }
    }
    bool on = true;
    for (int j = 0; j < kDots; ++j) on &= halves(dots_[j], width) > 0.0;
    return !on;
  }

  // Sets the lanes that a sum over n elements fills to 0; their number, a power of two.
  int64_t padded(int sums) {
    const int64_t width = sum_width(n_ < 8 ? 8 : n_ < kLanes ? n_ : kLanes);
    for (int j = 0; j < sums; ++j) std::memset(dots_[j], 0, width * sizeof(double));
    return width;
  }

  // The sum of the lanes, as ulam::kLanes has it; zeros beyond the last element change nothing.
  static double halves(double* lanes, int64_t width) {
    for (int64_t w = width / 2; w >= 8; w /= 2)
      for (int64_t l = 0; l < w; ++l) lanes[l] += lanes[l + w];
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }

  // Counts a transition that is done and keeps its state; the chain begins the next, or rests.
  void finish(int64_t b) {
    const TreeRecord& k = t_.record;
    const int64_t made = k.made[b]++;
    t_.draw[b] += kDrawsPerStep;
    t_.live[b] = made + 1 < k.limit;
    t_.fresh[b] = true;
    k.all_leapfrogs[b] += t_.leaps[b];
    if (made < k.first) return;
    k.acceptance[b] += t_.accepted[b] / static_cast<double>(t_.leaps[b]);
    k.divergences[b] += t_.diverged[b];
    k.diverged_now[b] |= t_.diverged[b];
    const int64_t since = made + 1 - k.first + k.counted;
    if (since % k.thin) return;
    const int64_t at = b * k.kept + (since / k.thin - k.counted / k.thin - 1);
    if (k.draws) std::memcpy(k.draws + at * n_, row(t_.x, b), bytes());
    if (k.energies) k.energies[at] = t_.energy[b];
    if (k.depth) k.depth[at] = t_.depth[b];
    if (k.leapfrogs) k.leapfrogs[at] = t_.leaps[b];
    if (k.diverging) {
      k.diverging[at] = k.diverged_now[b];
      k.diverged_now[b] = false;
    }
    if (!k.moments) return;
    double* const sums = k.moments + 2 * b * n_;
    for (int64_t i = 0; i < n_; ++i) {
      const double wide = row(t_.x, b)[i];
      sums[i] += wide;
      sums[n_ + i] += wide * wide;
    }
  }

  const Trees& t_;
  const int64_t n_, first_;
  const int lanes_;
  alignas(64) double dots_[kDots][kLanes + 8];  // 8 apart, for rows that begin in different sets of the cache
};

template <class V>
void tree_leap_units(const TreeLeap& s, int64_t, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    TreeGroup<V> group(s, unit);
    if (s.parts & kAfter) group.after(s.energy + group.first(), s.score + group.first() * s.elements);
    if (s.parts & kBefore) group.before();
  }
}

template <class V>
void tree_run_units(const TreeRun& s, int64_t, int64_t begin, int64_t end) {
  const int64_t d = s.elements;
  alignas(64) Lanes<V> x, score;
  alignas(64) double energy[V::width];
  for (int64_t unit = begin; unit < end; ++unit) {
    TreeGroup<V> group(s, unit);
    const int64_t first = group.first();
    while (group.any_live()) {
      group.before();
      gather<V>(s.here.x, first, s.chains, d, x);
      evaluate_lanes<V>(s.target, x, score, energy);
      scatter<V>(score, group.lanes(), d, s.here.score + first * d, d);
      group.after(energy, s.here.score + first * d);
    }
  }
}

}  // namespace
}  // namespace ulam::cpu
