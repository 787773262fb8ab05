// Whole chains side by side: a lane is a chain, its state lies in the nearest cache. Part of kernels_impl.h.
#pragma once

#include <cstring>
#include <limits>

#include "mcmc_isokinetic.h"

namespace ulam::cpu {
namespace {

// d elements of each chain from `first` on, to rows of lanes; lanes beyond the last chain repeat it.
template <class V>
void gather(const float* from, int64_t first, int64_t chains, int64_t d, Lanes<V>& rows) {
  for (int l = 0; l < V::width; ++l) {
    const int64_t b = first + l < chains ? first + l : chains - 1;
    for (int64_t i = 0; i < d; ++i) rows[i][l] = from[b * d + i];
  }
}

// Back: chain l's d elements to `to` + l * stride. Blocks of four by four are transposed in registers.
template <class V>
void scatter(const Lanes<V>& rows, int lanes, int64_t d, float* to, int64_t stride) {
  int64_t i = 0;
  if constexpr (V::width > 1) {
    for (; i + 4 <= d; i += 4) {
      typename V::f z[4];
      alignas(64) float turned[4][V::width];
      for (int k = 0; k < 4; ++k) z[k] = get<V>(rows[i + k]);
      V::interleave(z);
      for (int k = 0; k < 4; ++k) put<V>(turned[k], z[k]);
      for (int l = 0; l < lanes; ++l) std::memcpy(to + l * stride + i, &turned[l % 4][l / 4 * 4], 4 * sizeof(float));
    }
  }
  for (; i < d; ++i)
    for (int l = 0; l < lanes; ++l) to[l * stride + i] = rows[i][l];
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class V>
class Chains {
  static constexpr int W = V::width;
  using f = typename V::f;

 public:
  Chains(const Run& s, int64_t first)
      : s_(s),
        first_(first),
        d_(s.target.dimension),
        lanes_(static_cast<int>(s.chains - first < W ? s.chains - first : W)),
        blocks_(static_cast<int>((d_ + 3) / 4)),
        noise_(s.ids, first, s.chains),
        flow_(d_, scale_) {
    gather<V>(s.x, first, s.chains, d_, x_);
    if (s.v) gather<V>(s.v, first, s.chains, d_, v_);
    for (int l = 0; l < W; ++l)
      for (int k = 0; k < 4; ++k) coef_[k][l] = s.coef[4 * (l < lanes_ ? first + l : s.chains - 1) + k];
    for (int64_t i = 0; i < d_; ++i) scale_[i] = s.scale ? s.scale[i] : 1.0f;
    if (s.moments)
      for (int l = 0; l < lanes_; ++l)
        for (int64_t i = 0; i < d_; ++i) {
          sum_[i][l] = moment(l, 0)[i];
          square_[i][l] = moment(l, 1)[i];
        }
  }

  void run() {
    const bool tests = has_test(s_.sampler);
    evaluate_lanes<V>(s_.target, x_, score_, tests ? energy_ : nullptr);
    flow_.set_beta(coef_[2]);
    if (s_.sampler == kMclmc) flow_.face(score_);
    int64_t kept = 0;
    for (int64_t step = 0; step < s_.steps; ++step) {
      noise_.start(static_cast<uint64_t>(step) * kDrawsPerStep);
      const f r = normals_of<V>(noise_, blocks_, tests, z_);
      switch (s_.sampler) {
        case kUla:
          if (!elementwise_score<V>(s_.target, [this](const auto& score) { langevin(x_, score); })) {
            langevin(x_, kept_score());
            evaluate_lanes<V>(s_.target, x_, score_, nullptr);
          }
          break;
        case kMala:
          mala(r);
          break;
        case kBaoab:
          baoab();
          break;
        case kHmc:
          hmc(r, step);
          break;
        case kGhmc:
          ghmc(r);
          break;
        case kMalt:
          malt(r, step);
          break;
        case kMclmc:
          mclmc();
          break;
        default:
          mams(r, step);
      }
      if ((step + 1) % s_.thin == 0) keep(kept++);
    }
    finish();
  }

 private:
  f coef(int k) const { return get<V>(coef_[k]); }
  double* moment(int lane, int which) const { return s_.moments + (2 * (first_ + lane) + which) * d_; }

  auto kept_score() const {
    return [this](int64_t i, f) { return get<V>(score_[i]); };
  }

  // One step of x_ to `out`, which may be x_; score(i, x) is that of element i.
  template <class Score>
  void langevin(Lanes<V>& out, const Score& score) {
    const f step = coef(0), noise = coef(1);
    const bool bounded = s_.lo > -kInfinity || s_.hi < kInfinity;
    if (!s_.scale && !bounded) {
      for (int64_t i = 0; i < d_; ++i) {
        const f x = get<V>(x_[i]);
        put<V>(out[i], ulam::langevin<V>(x, score(i, x), step, noise, get<V>(z_[i])));
      }
      return;
    }
    for (int64_t i = 0; i < d_; ++i) {
      const f x = get<V>(x_[i]), scale = V::set(scale_[i]);
      put<V>(out[i], ulam::langevin<V>(x, V::mul(scale, score(i, x)), V::mul(step, scale), V::mul(noise, scale),
                                       get<V>(z_[i]), s_.lo, s_.hi));
    }
  }

  // to += size L by
  void kick(Lanes<V>& to, f size, const Lanes<V>& by) {
    for (int64_t i = 0; i < d_; ++i)
      put<V>(to[i], V::fma(V::mul(size, V::set(scale_[i])), get<V>(by[i]), get<V>(to[i])));
  }

  void mala(f r) {
    alignas(64) double proposed[W], sum[W], ratio[W], half[W];
    langevin(proposal_, kept_score());
    evaluate_lanes<V>(s_.target, proposal_, proposal_score_, proposed);
    for (int l = 0; l < W; ++l) half[l] = 0.5 * static_cast<double>(coef_[0][l]);
    for (int64_t i = 0; i < d_; ++i) {
      const double scale = scale_[i];
      const float* const __restrict x = x_[i], * const __restrict y = proposal_[i];
      const float* const __restrict s = score_[i], * const __restrict t = proposal_score_[i];
      double* const __restrict term = wide_[i];
      for (int l = 0; l < W; ++l) term[l] = mala_term(x[l], y[l], s[l], t[l], half[l] * scale * scale);
    }
    halved_sum<W>(wide_, d_, sum);
    for (int l = 0; l < W; ++l) ratio[l] = mala_log_ratio(energy_[l], proposed[l], sum[l], coef_[2][l]);
    select(r, ratio, proposed);
  }

  void baoab() {
    kick(v_, coef(0), score_);
    kick(x_, coef(1), v_);
    for (int64_t i = 0; i < d_; ++i) put<V>(v_[i], thermostat<V>(get<V>(v_[i]), coef(2), coef(3), get<V>(z_[i])));
    kick(x_, coef(1), v_);
    evaluate_lanes<V>(s_.target, x_, score_, nullptr);
    kick(v_, coef(0), score_);
  }

  void hmc(f r, int64_t step) {
    alignas(64) double before[W], after[W], ratio[W], proposed[W];
    const f whole = varied_step(step), half = V::mul(V::set(0.5f), whole);
    for (int64_t i = 0; i < d_; ++i) {
      put<V>(v_[i], V::mul(coef(3), get<V>(z_[i])));
      put<V>(proposal_[i], get<V>(x_[i]));
    }
    squared_norms(v_, before);
    for (int64_t leap = 0; leap < s_.leapfrog; ++leap) {
      kick(v_, leap ? whole : half, leap ? proposal_score_ : score_);
      kick(proposal_, whole, v_);
      evaluate_lanes<V>(s_.target, proposal_, proposal_score_, leap + 1 == s_.leapfrog ? proposed : nullptr);
    }
    kick(v_, half, proposal_score_);
    squared_norms(v_, after);
    for (int l = 0; l < W; ++l) ratio[l] = hmc_log_ratio(energy_[l], proposed[l], before[l], after[l], coef_[2][l]);
    select(r, ratio, proposed);
  }

  // Goes to the noise of a stage of this step.
  void start(int64_t step, int stage) {
    noise_.start(static_cast<uint64_t>(step) * kDrawsPerStep + static_cast<uint64_t>(stage));
  }

  // The leapfrog step of this transition of the chains.
  f varied_step(int64_t step) {
    bool varies = false;
    for (int l = 0; l < W; ++l) varies |= coef_[1][l] != 0.0f;
    if (!varies) return coef(0);
    alignas(64) float varied[W];
    start(step, kPathStage);
    normals_of<V>(noise_, 1, false, path_z_);
    for (int l = 0; l < W; ++l)
      varied[l] = ulam::varied_step(coef_[0][l], coef_[1][l], path_z_[0][l], path_z_[1][l], path_z_[2][l]);
    return get<V>(varied);
  }

  // v <- keep v + sqrt(T (1 - keep^2)) z
  void refresh(float (*z)[W]) {
    const f keep = coef(1), fresh = fresh_share<V>(keep, coef(3));
    for (int64_t i = 0; i < d_; ++i) put<V>(v_[i], refreshed<V>(get<V>(v_[i]), keep, fresh, get<V>(z[i])));
  }

  // A leapfrog step of the proposal; `lost` counts the kinetic energy that it takes away.
  void leap(int64_t number, double* lost, double* proposed) {
    alignas(64) double before[W], after[W];
    const f whole = coef(0), half = V::mul(V::set(0.5f), whole);
    squared_norms(v_, before);
    kick(v_, half, number ? proposal_score_ : score_);
    kick(proposal_, whole, v_);
    evaluate_lanes<V>(s_.target, proposal_, proposal_score_, number + 1 == s_.leapfrog ? proposed : nullptr);
    kick(v_, half, proposal_score_);
    squared_norms(v_, after);
    for (int l = 0; l < W; ++l) lost[l] += 0.5 * (before[l] - after[l]);
  }

  void ghmc(f r) {
    alignas(64) double lost[W] = {}, ratio[W], proposed[W];
    refresh(z_);
    for (int64_t i = 0; i < d_; ++i) {
      put<V>(z_[i], V::mul(V::set(-1.0f), get<V>(v_[i])));
      put<V>(proposal_[i], get<V>(x_[i]));
    }
    for (int64_t number = 0; number < s_.leapfrog; ++number) leap(number, lost, proposed);
    for (int l = 0; l < W; ++l) ratio[l] = path_log_ratio(energy_[l], proposed[l], lost[l], coef_[2][l]);
    select(r, ratio, proposed);
    for (int64_t i = 0; i < d_; ++i) {  // reversed where the path was refused
      choose(z_[i], v_[i], yes_);
      put<V>(v_[i], get<V>(z_[i]));
    }
  }

  void malt(f r, int64_t step) {
    alignas(64) double lost[W] = {}, ratio[W], proposed[W];
    for (int64_t i = 0; i < d_; ++i) {
      put<V>(v_[i], V::mul(coef(3), get<V>(z_[i])));
      put<V>(proposal_[i], get<V>(x_[i]));
    }
    start(step, kMaltPathStage);
    for (int64_t number = 0; number < s_.leapfrog; ++number) {
      if (number) {
        const int64_t first = (number - 1) * d_, inside = first & 3;  // elements of the path's noise, and of its block
        const int blocks = static_cast<int>((inside + d_ + 3) / 4);
        normals_of<V>(noise_, blocks, false, path_z_, static_cast<uint32_t>(first >> 2));
        refresh(path_z_ + inside);
      }
      leap(number, lost, proposed);
    }
    for (int l = 0; l < W; ++l) ratio[l] = path_log_ratio(energy_[l], proposed[l], lost[l], coef_[2][l]);
    select(r, ratio, proposed);
  }

  void mclmc() {
    alignas(64) double step[W], nu[W];
    for (int l = 0; l < W; ++l) {
      step[l] = coef_[0][l];
      nu[l] = refreshment(step[l], coef_[1][l], coef_[3][l] > 0.0f, static_cast<double>(d_));
    }
    flow_.begin(v_);
    flow_.step(step, x_, score_, [&] { evaluate_lanes<V>(s_.target, x_, score_, nullptr); });
    flow_.refresh(nu, z_);
    flow_.write(v_);
  }

  void mams(f r, int64_t step) {
    alignas(64) double varied[W], ratio[W], proposed[W];
    start(step, kMamsPathStage);
    normals_of<V>(noise_, 1, false, path_z_);
    for (int l = 0; l < W; ++l)
      varied[l] = static_cast<double>(coef_[0][l]) *
                  (coef_[1][l] == 0.0f ? 1.0 : variation(coef_[1][l], path_z_[0][l], path_z_[1][l], path_z_[2][l]));
    for (int64_t i = 0; i < d_; ++i) put<V>(proposal_[i], get<V>(x_[i]));
    flow_.face(score_);
    flow_.begin(z_);
    for (int64_t number = 0; number < s_.leapfrog; ++number)
      flow_.step(varied, proposal_, proposal_score_, [&] {
        evaluate_lanes<V>(s_.target, proposal_, proposal_score_, number + 1 == s_.leapfrog ? proposed : nullptr);
      });
    const double* const lost = flow_.lost();
    for (int l = 0; l < W; ++l) ratio[l] = (energy_[l] - proposed[l]) * static_cast<double>(coef_[2][l]) + lost[l];
    select(r, ratio, proposed);
  }

  void squared_norms(const Lanes<V>& v, double* sum) {
    for (int64_t i = 0; i < d_; ++i)
      for (int l = 0; l < W; ++l) wide_[i][l] = static_cast<double>(v[i][l]) * static_cast<double>(v[i][l]);
    halved_sum<W>(wide_, d_, sum);
  }

  void select(f r, const double* ratio, const double* proposed) {
    alignas(64) float root[W];
    put<V>(root, r);
    for (int l = 0; l < W; ++l) yes_[l] = accepts(ratio[l], root[l]);
    for (int l = 0; l < W; ++l) {
      accepted_[l] += yes_[l];
      diverged_[l] += diverges(ratio[l]);
      energy_[l] = yes_[l] ? proposed[l] : energy_[l];
    }
    for (int64_t i = 0; i < d_; ++i) {
      choose(x_[i], proposal_[i], yes_);
      choose(score_[i], proposal_score_[i], yes_);
    }
  }

  static void choose(float* __restrict to, const float* __restrict from, const int32_t* __restrict yes) {
    for (int l = 0; l < W; ++l) to[l] = yes[l] ? from[l] : to[l];
  }

  void keep(int64_t kept) {
    const int64_t count = s_.steps / s_.thin;
    if (s_.draws) scatter<V>(x_, lanes_, d_, s_.draws + (first_ * count + kept) * d_, count * d_);
    if (s_.moments)
      for (int64_t i = 0; i < d_; ++i)
        for (int l = 0; l < W; ++l) {
          const double x = x_[i][l];
          sum_[i][l] += x;
          square_[i][l] += x * x;
        }
    if (!s_.energies) return;
    if (!has_test(s_.sampler)) evaluate_lanes<V>(s_.target, x_, proposal_score_, energy_);
    for (int l = 0; l < lanes_; ++l) s_.energies[(first_ + l) * count + kept] = energy_[l];
  }

  void finish() {
    scatter<V>(x_, lanes_, d_, s_.x + first_ * d_, d_);
    if (s_.v) scatter<V>(v_, lanes_, d_, s_.v + first_ * d_, d_);
    for (int l = 0; l < lanes_; ++l) {
      if (s_.accepted) s_.accepted[first_ + l] += accepted_[l];
      if (s_.diverged) s_.diverged[first_ + l] += diverged_[l];
      for (int64_t i = 0; i < d_ && s_.moments; ++i) {
        moment(l, 0)[i] = sum_[i][l];
        moment(l, 1)[i] = square_[i][l];
      }
    }
  }

  const Run& s_;
  const int64_t first_, d_;
  const int lanes_, blocks_;
  ChainNoise<V> noise_;
  alignas(64) Lanes<V> x_, score_, z_, v_, proposal_, proposal_score_;
  alignas(64) double wide_[kMaxDimension][W], sum_[kMaxDimension][W] = {}, square_[kMaxDimension][W] = {};
  alignas(64) float path_z_[kMaxDimension + 8][W];  // the noise of a path, from anywhere in a block on
  alignas(64) float coef_[4][W];
  alignas(64) int32_t yes_[W];  // which proposals were accepted last
  alignas(64) double energy_[W] = {};
  int64_t accepted_[W] = {}, diverged_[W] = {};
  float scale_[kMaxDimension];
  Isokinetic<V> flow_;
};

template <class V>
void run_units(const Run& s, int64_t, int64_t begin, int64_t end) {
  for (int64_t group = begin; group < end; ++group) Chains<V>(s, group * V::width).run();
}

template <class V>
void evaluate_units(const Evaluate& s, int64_t, int64_t begin, int64_t end) {
  const int64_t d = s.target.dimension;
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * V::width;
    const int lanes = static_cast<int>(s.chains - first < V::width ? s.chains - first : V::width);
    alignas(64) Lanes<V> x, score;
    alignas(64) double energy[V::width];
    gather<V>(s.x, first, s.chains, d, x);
    evaluate_lanes<V>(s.target, x, score, s.energy ? energy : nullptr);
    scatter<V>(score, lanes, d, s.score + first * d, d);
    if (s.energy) std::memcpy(s.energy + first, energy, lanes * sizeof(double));
  }
}

}  // namespace
}  // namespace ulam::cpu
