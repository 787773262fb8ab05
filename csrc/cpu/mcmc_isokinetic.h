// Isokinetic steps side by side: a lane is a chain, whose velocity has length 1. Part of mcmc_run.h.
#pragma once

#include <cmath>

#include "mcmc_densities.h"
#include "ulam/isokinetic.h"

namespace ulam::cpu {
namespace {

// d numbers of each chain, a row of lanes an element.
template <int W>
using WideLanes = double[kMaxDimension][W];

// Velocities u, and the scores that turn them. Numbers of a chain are [W]; `scale` has d, 1 where there is none.
template <class V>
class Isokinetic {
  static constexpr int W = V::width;

 public:
  Isokinetic(int64_t d, const float* scale) : d_(d), scale_(scale) {}

  void set_beta(const float* beta) {
    for (int l = 0; l < W; ++l) beta_[l] = beta[l];
  }
  const double* lost() const { return lost_; }

  // Begins with velocities along v; adds nu z to them. Either way they have length 1.
  void begin(const Lanes<V>& v) {
    for (int64_t i = 0; i < d_; ++i)
      for (int l = 0; l < W; ++l) u_[i][l] = v[i][l];
    normalise();
    for (int l = 0; l < W; ++l) lost_[l] = 0.0;
  }
  void refresh(const double* nu, const Lanes<V>& z) {
    for (int64_t i = 0; i < d_; ++i) {
      double* const __restrict u = u_[i];
      for (int l = 0; l < W; ++l) u[l] += nu[l] * static_cast<double>(z[i][l]);
    }
    normalise();
  }
  void write(Lanes<V>& v) const {
    for (int64_t i = 0; i < d_; ++i)
      for (int l = 0; l < W; ++l) v[i][l] = static_cast<float>(u_[i][l]);
  }

  // Takes the scores s at the chains' places, whitened, at the temperature: their lengths |s| and directions e.
  void face(const Lanes<V>& score) {
    alignas(64) double inverse[W];
    for (int64_t i = 0; i < d_; ++i) {
      const double scale = scale_[i];
      for (int l = 0; l < W; ++l) {
        const double s = (beta_[l] * static_cast<double>(score[i][l])) * scale;
        e_[i][l] = s;
        terms_[i][l] = s * s;
      }
    }
    halved_sum<W>(terms_, d_, length_);
    for (int l = 0; l < W; ++l) {
      inverse[l] = 1.0 / std::sqrt(length_[l] > 0.0 ? length_[l] : 1.0);
      length_[l] *= inverse[l];
    }
    multiply(e_, inverse);
  }

  // A kick for half the time `step` by the scores that were faced last; `growth` is that of the kinetic energy.
  void kick(const double* step, double* growth) {
    alignas(64) double delta[W], sum[W], along[W], zeta[W], cosine[W], log_growth[W], size[W], inverse[W];
    const double freedom = static_cast<double>(d_ - 1);
    for (int64_t i = 0; i < d_; ++i)
      for (int l = 0; l < W; ++l) {
        const double both = e_[i][l] + u_[i][l];
        terms_[i][l] = both * both;
      }
    halved_sum<W>(terms_, d_, sum);
    for (int l = 0; l < W; ++l) {
      delta[l] = (0.5 * step[l]) * length_[l] / freedom;
      const Kick kick(delta[l], sum[l]);
      along[l] = kick.along, zeta[l] = kick.zeta, cosine[l] = kick.cosine, log_growth[l] = kick.log_growth;
    }
    for (int64_t i = 0; i < d_; ++i) {
      for (int l = 0; l < W; ++l) {
        const double u = turned(u_[i][l], e_[i][l], along[l], zeta[l], cosine[l]);
        turned_[i][l] = u;
        terms_[i][l] = u * u;
      }
    }
    halved_sum<W>(terms_, d_, size);
    for (int l = 0; l < W; ++l) {
      growth[l] = freedom * (stays(size[l]) ? -delta[l] : log_growth[l]);
      inverse[l] = 1.0 / std::sqrt(stays(size[l]) ? 1.0 : size[l]);
    }
    for (int64_t i = 0; i < d_; ++i) {
      double* const __restrict u = u_[i];
      for (int l = 0; l < W; ++l) u[l] = stays(size[l]) ? u[l] : inverse[l] * turned_[i][l];
    }
  }

  // A kick, x += step u, and a kick by what `evaluate` leaves in `score`: the kinetic energy lost is counted.
  template <class Evaluate>
  void step(const double* step, Lanes<V>& x, const Lanes<V>& score, const Evaluate& evaluate) {
    alignas(64) double first[W], second[W];
    kick(step, first);
    for (int64_t i = 0; i < d_; ++i) {
      const double scale = scale_[i];
      for (int l = 0; l < W; ++l)
        x[i][l] = static_cast<float>(static_cast<double>(x[i][l]) + (step[l] * u_[i][l]) * scale);
    }
    evaluate();
    face(score);
    kick(step, second);
    for (int l = 0; l < W; ++l) lost_[l] -= first[l] + second[l];
  }

 private:
  void multiply(WideLanes<W>& rows, const double* by) const {
    for (int64_t i = 0; i < d_; ++i) {
      double* const __restrict row = rows[i];
      for (int l = 0; l < W; ++l) row[l] *= by[l];
    }
  }

  void normalise() {
    alignas(64) double inverse[W];
    for (int64_t i = 0; i < d_; ++i)
      for (int l = 0; l < W; ++l) terms_[i][l] = u_[i][l] * u_[i][l];
    halved_sum<W>(terms_, d_, inverse);
    for (int l = 0; l < W; ++l) inverse[l] = 1.0 / std::sqrt(inverse[l]);
    multiply(u_, inverse);
  }

  const int64_t d_;
  const float* const scale_;
  alignas(64) WideLanes<W> u_, e_, terms_, turned_;
  alignas(64) double beta_[W], length_[W], lost_[W];
};

}  // namespace
}  // namespace ulam::cpu
