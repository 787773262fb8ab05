// The arguments of the Langevin and Metropolis operations, as every native backend takes them: sizes and raw pointers.
// See kernels/ulam_kernels/mcmc/ for what each operation does.
#pragma once

#include <cmath>
#include <cstdint>

#include "ulam/operations.h"
#include "ulam/platform.h"

namespace ulam {

constexpr int kMaxDimension = 128, kMaxComponents = 64;
constexpr uint32_t kAcceptTag = 2;
constexpr int64_t kDrawsPerStep = 16;
// Of a step's draws: those that vary the length of a path of HMC and of MAMS, and those that refresh on one of MALT.
constexpr int kPathStage = 2, kMamsPathStage = 11, kMaltPathStage = 12;

enum DensityKind : int { kGaussianDiagonal, kGaussian, kMixture, kDoubleWell, kRosenbrock, kFunnel, kRing };
enum Sampler : int { kUla, kMala, kBaoab, kHmc, kGhmc, kMalt, kMclmc, kMams };

// Whether a sampler has a Metropolis test.
ULAM_HD bool has_test(int sampler) {
  return sampler == kMala || sampler == kHmc || sampler == kGhmc || sampler == kMalt || sampler == kMams;
}

struct Ids {  // [B] each
  const int64_t *seed, *chain, *draw;
};

// B chains of n elements. Optional pointers may be null.
struct Langevin {
  static constexpr Sharing sharing = Sharing::kSideBySide;
  int64_t chains, elements;
  const float *x, *score;           // [B, n]
  const float *step, *noise_scale;  // [B]
  const float* scale;               // [n]
  float lo, hi;
  Ids ids;
  const float* noise;  // [B, n]: used in place of the generated noise
  float* out;          // [B, n], may be x
};

struct KickDrift {
  static constexpr Sharing sharing = Sharing::kSideBySide;
  int64_t chains, elements;
  float *x, *v;                                    // [B, n]
  const float* score;                              // [B, n]
  const float *kick, *drift, *keep, *noise_scale;  // [B]
  const float* scale;                              // [n]
  Ids ids;
  const float* noise;  // [B, n]
};

struct MalaAccept {
  static constexpr Sharing sharing = Sharing::kGroups;
  int64_t chains, elements;
  float *x, *score;                         // [B, n]
  const float *proposal, *proposal_score;   // [B, n]
  double* energy;                           // [B]
  const double* proposal_energy;            // [B]
  const float *step, *inverse_temperature;  // [B]
  const float* scale;                       // [n]
  Ids ids;
  bool* accepted;     // [B]
  double* log_ratio;  // [B]
};

struct SquaredNorm {
  static constexpr Sharing sharing = Sharing::kGroups;
  int64_t chains, elements;
  const float* x;  // [B, n]
  double* out;     // [B]
};

struct Pair {
  char* kept;
  const char* proposed;
  int64_t bytes;  // of a chain
};

struct Accept {
  static constexpr Sharing sharing = Sharing::kGroups;
  int64_t chains;
  const double* log_ratio;  // [B]
  int count;
  Pair pairs[4];
  Ids ids;
  bool* accepted;  // [B]
};

struct Target {
  int kind;
  int64_t dimension, components;
  const float* params;
};

struct Evaluate {
  static constexpr Sharing sharing = Sharing::kGroups;
  Target target;
  int64_t chains;
  const float* x;  // [B, d]
  double* energy;  // [B]
  float* score;    // [B, d]
};

struct Run {
  static constexpr Sharing sharing = Sharing::kGroups;
  Target target;
  int64_t chains;
  float* x;  // [B, d]
  int sampler;
  const float* coef;  // [B, 4]
  int64_t steps;
  Ids ids;
  float* v;  // [B, d]
  int64_t leapfrog;
  const float* scale;  // [d]
  float lo, hi;
  int64_t thin;
  float* draws;                  // [B, steps / thin, d]
  double* energies;              // [B, steps / thin]
  double* moments;               // [B, 2, d]
  int64_t *accepted, *diverged;  // [B]
};

// The Metropolis test u < exp(log_ratio), with r = sqrt(-2 ln u) of noise-v1. NaN rejects.
ULAM_HD bool accepts(double log_ratio, float r) {
  const double wide = r;
  return wide * wide > -2.0 * log_ratio;
}

// A proposal so far off that the integration has failed (DIVERGED of kernels/ulam_kernels/mcmc/); NaN too.
ULAM_HD bool diverges(double log_ratio) { return !(log_ratio >= -1000.0); }

// An element's part in the log ratio of a Langevin proposal; half is (step / 2) P_i.
ULAM_HD double mala_term(float x, float proposal, float score, float proposal_score, double half) {
  const double a = x, b = proposal, s = score, t = proposal_score;
  return (s + t) * ((b - a) + half * (t - s));
}

ULAM_HD double mala_log_ratio(double energy, double proposal_energy, double sum, double beta) {
  return ((energy - proposal_energy) - 0.5 * sum) * beta;
}

ULAM_HD double hmc_log_ratio(double energy, double proposal_energy, double norm, double proposal_norm, double beta) {
  return ((energy - proposal_energy) + 0.5 * (norm - proposal_norm)) * beta;
}

// Of a path whose leaps took `lost` of the kinetic energy away.
ULAM_HD double path_log_ratio(double energy, double proposal_energy, double lost, double beta) {
  return ((energy - proposal_energy) + lost) * beta;
}

// By how much the step of a path varies: 1 + jitter u, u = z_0 / |z| of three normals z: a coordinate of a uniform
// point of the sphere, which is uniform on [-1, 1] [Archimedes].
ULAM_HD double variation(float jitter, float z0, float z1, float z2) {
  const double a = z0, b = z1, c = z2;
  return 1.0 + static_cast<double>(jitter) * (a / sqrt((a * a + b * b) + c * c));
}

// The step of an HMC transition whose path varies, rounded once.
ULAM_HD float varied_step(float step, float jitter, float z0, float z1, float z2) {
  return static_cast<float>(static_cast<double>(step) * variation(jitter, z0, z1, z2));
}

// The updates of one element; `size` has the element's scale in it already.
template <class V>
ULAM_HD typename V::f langevin(typename V::f x, typename V::f scaled_score, typename V::f step, typename V::f noise,
                               typename V::f z) {
  return V::fma(noise, z, V::fma(step, scaled_score, x));
}
template <class V>
ULAM_HD typename V::f langevin(typename V::f x, typename V::f scaled_score, typename V::f step, typename V::f noise,
                               typename V::f z, float lo, float hi) {
  return V::clip(langevin<V>(x, scaled_score, step, noise, z), V::set(lo), V::set(hi));
}

// keep v + fresh z, each rounded, for the fresh share sqrt(T (1 - keep^2)) of a momentum N(0, T).
template <class V>
ULAM_HD typename V::f fresh_share(typename V::f keep, typename V::f root_temperature) {
  const typename V::f one = V::set(1.0f);
  return V::mul(root_temperature, V::root(V::mul(V::sub(one, keep), V::add(one, keep))));
}
template <class V>
ULAM_HD typename V::f refreshed(typename V::f v, typename V::f keep, typename V::f fresh, typename V::f z) {
  return V::add(V::mul(keep, v), V::mul(fresh, z));
}

template <class V>
ULAM_HD typename V::f thermostat(typename V::f v, typename V::f keep, typename V::f noise, typename V::f z) {
  return V::fma(noise, z, V::mul(keep, v));
}

}  // namespace ulam
