// Whole chains in one launch: see kernels/ulam_kernels/mcmc.py.
//
// A few threads of a warp, at most all 32, hold a chain, each of them four neighbouring elements: one block of the
// noise. All state is in registers; sums over a chain go by shuffles, in the order of the contract.
#include "launch.h"
#include "mcmc_kernels.h"
#include "mcmc_noise.h"
#include "ulam/densities.h"

namespace ulam::cuda {

struct Lane : Scalar {
  static ULAM_DEVICE f add(f a, f b) { return __fadd_rn(a, b); }
  static ULAM_DEVICE f div(f a, f b) { return __fdiv_rn(a, b); }
  static ULAM_DEVICE f root(f a) { return __fsqrt_rn(a); }
};

ULAM_DEVICE float sum2(float a, float b) { return __fadd_rn(a, b); }
ULAM_DEVICE double sum2(double a, double b) { return a + b; }

// A thread's place: elements 4 t to 4 t + 3 of its chain, which `threads` threads share.
struct Place {
  int t, threads, d;
  bool inside[4];

  ULAM_DEVICE Place(int threads, int64_t dimension)
      : t(threadIdx.x & (threads - 1)), threads(threads), d(static_cast<int>(dimension)) {
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) inside[k] = 4 * t + k < d;
  }
  ULAM_DEVICE int element(int k) const { return 4 * t + k; }
  // The sum over the chain; elements beyond d are 0.
  template <class T>
  ULAM_DEVICE T sum(T v0, T v1, T v2, T v3) const {
    for (int w = threads / 2; w > 0; w /= 2) {
      v0 = sum2(v0, __shfl_xor_sync(0xffffffffu, v0, w));
      v1 = sum2(v1, __shfl_xor_sync(0xffffffffu, v1, w));
      v2 = sum2(v2, __shfl_xor_sync(0xffffffffu, v2, w));
      v3 = sum2(v3, __shfl_xor_sync(0xffffffffu, v3, w));
    }
    return sum2(sum2(v0, v2), sum2(v1, v3));
  }
  template <class T, class Make>
  ULAM_DEVICE T sum_of(const Make& make) const {
    T v[4];
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) v[k] = inside[k] ? make(k) : T(0);
    return sum(v[0], v[1], v[2], v[3]);
  }
  ULAM_DEVICE float from(int thread, float x) const { return __shfl_sync(0xffffffffu, x, thread, threads); }
};

constexpr int kRunThreads = 64;

// The exponents of a mixture, a column a thread.
struct Shares {
  float* column;
  ULAM_DEVICE float& operator[](int64_t k) const { return column[k * kRunThreads]; }
};

ULAM_DEVICE double mixture(const Target& target, const Place& p, const Shares& share, const float x[4], float s[4]) {
  const float* const q = target.params;
  const int64_t count = target.components;
  const auto away = [&](int64_t k, int j) {
    return p.inside[j] ? Lane::sub(__ldg(q + 2 * count + k * p.d + p.element(j)), x[j]) : 0.0f;
  };
  float largest = 0.0f, total = 0.0f;
  for (int64_t k = 0; k < count; ++k) {
    const float squares = p.sum_of<float>([&](int j) { return Lane::mul(away(k, j), away(k, j)); });
    share[k] = mixture_exponent<Lane>(q, count, k, squares);
    largest = k ? greater<Lane>(largest, share[k]) : share[k];
  }
  for (int64_t k = 0; k < count; ++k) {
    share[k] = exp<Lane>(Lane::sub(share[k], largest));
    total = k ? Lane::add(total, share[k]) : share[k];
  }
  const float reciprocal = Lane::div(1.0f, total);
  for (int64_t k = 0; k < count; ++k) {
    const float weight = Lane::mul(Lane::mul(share[k], reciprocal), __ldg(q + count + k));
    ULAM_UNROLL
    for (int j = 0; j < 4; ++j) s[j] = k ? Lane::fma(weight, away(k, j), s[j]) : Lane::mul(weight, away(k, j));
  }
  return -(static_cast<double>(largest) + static_cast<double>(log<Lane>(total)));
}

// The score of the thread's elements; the energy is returned, in every thread of the chain, if it is asked for.
ULAM_DEVICE double evaluate_chain(const Target& target, const Place& p, const Shares& share, const float x[4],
                                  float s[4], bool wants_energy) {
  const float* const q = target.params;
  float term[4] = {};
  switch (target.kind) {
    case kGaussianDiagonal:
    case kGaussian: {
      const bool full = target.kind == kGaussian;
      float u[4];
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        u[k] = p.inside[k] ? Lane::sub(x[k], __ldg(q + p.element(k))) : 0.0f;
        s[k] = p.inside[k] && !full ? Lane::mul(-__ldg(q + p.d + p.element(k)), u[k]) : 0.0f;
      }
      for (int thread = 0; full && thread < p.threads; ++thread) {
        ULAM_UNROLL
        for (int j = 0; j < 4; ++j) {
          const float uj = p.from(thread, u[j]);
          const int column = 4 * thread + j;
          ULAM_UNROLL
          for (int k = 0; k < 4; ++k) {
            if (column >= p.d || !p.inside[k]) continue;
            const float a = -__ldg(q + p.d + p.element(k) * p.d + column);
            s[k] = column ? Lane::fma(a, uj, s[k]) : Lane::mul(a, uj);
          }
        }
      }
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) term[k] = gaussian_term<Lane>(u[k], s[k]);
      break;
    }
    case kMixture:
      return mixture(target, p, share, x, s);
    case kDoubleWell: {
      const DoubleWell<Lane> well(q);
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        s[k] = well.score(x[k]);
        term[k] = well.term(x[k]);
      }
      break;
    }
    case kRosenbrock: {
      const Rosenbrock<Lane> pair(q);
      pair(x[0], x[1], s, term);
      pair(x[2], x[3], s + 2, term + 2);
      break;
    }
    case kFunnel: {
      const Funnel<Lane> funnel(q, p.from(0, x[0]));
      const float squares = p.sum_of<float>([&](int k) { return p.element(k) ? Lane::mul(x[k], x[k]) : 0.0f; });
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        s[k] = p.element(k) ? funnel.score(x[k]) : funnel.first_score(squares);
        term[k] = p.element(k) ? funnel.term(x[k]) : funnel.first_term();
      }
      break;
    }
    default: {
      const Ring<Lane> ring(q, p.sum_of<float>([&](int k) { return Lane::mul(x[k], x[k]); }));
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) s[k] = Lane::mul(ring.factor, x[k]);
      return static_cast<double>(ring.energy);
    }
  }
  return wants_energy ? p.sum_of<double>([&](int k) { return static_cast<double>(term[k]); }) : 0.0;
}

ULAM_DEVICE void load4(const Place& p, const float* row, float x[4]) {
  ULAM_UNROLL
  for (int k = 0; k < 4; ++k) x[k] = p.inside[k] ? row[p.element(k)] : 0.0f;
}

ULAM_DEVICE void store4(const Place& p, float* row, const float x[4]) {
  ULAM_UNROLL
  for (int k = 0; k < 4; ++k)
    if (p.inside[k]) row[p.element(k)] = x[k];
}

ULAM_DEVICE void kick(float to[4], float size, const float scale[4], const float by[4]) {
  ULAM_UNROLL
  for (int k = 0; k < 4; ++k) to[k] = Lane::fma(Lane::mul(size, scale[k]), by[k], to[k]);
}

ULAM_DEVICE double squared_norm(const Place& p, const float v[4]) {
  return p.sum_of<double>([&](int k) { return static_cast<double>(v[k]) * static_cast<double>(v[k]); });
}

// Blocks of kRunThreads threads. Threads beyond the last chain work on it too, without a trace: the shuffles need them.
template <int sampler>
__global__ void __launch_bounds__(kRunThreads) mcmc_run(const Run s, int threads) {
  __shared__ float columns[kMaxComponents * kRunThreads];
  const Shares share{columns + threadIdx.x};
  const Place p(threads, s.target.dimension);
  const int64_t mine = (static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x) / threads;
  const bool exists = mine < s.chains;
  const int64_t b = exists ? mine : s.chains - 1;
  constexpr bool tests = sampler == kMala || sampler == kHmc;
  float x[4], score[4], v[4] = {}, y[4], t[4], z[4], scale[4] = {1.0f, 1.0f, 1.0f, 1.0f}, c[4];
  load4(p, s.x + b * p.d, x);
  if (s.v) load4(p, s.v + b * p.d, v);
  if (s.scale) load4(p, s.scale, scale);
  ULAM_UNROLL
  for (int k = 0; k < 4; ++k) c[k] = __ldg(s.coef + 4 * b + k);
  const uint64_t seed = s.ids.seed[b], chain = s.ids.chain[b], draw = s.ids.draw[b];
  const bool wants = tests || s.energies;
  double energy = evaluate_chain(s.target, p, share, x, score, wants), proposed = 0.0;
  double* const moment = s.moments + 2 * b * p.d;
  int64_t accepted = 0, diverged = 0, kept = 0;
  const int64_t count = s.steps / s.thin;
  int64_t until = s.thin;
#pragma unroll 1
  for (int64_t step = 0; step < s.steps; ++step) {
    const Stream stream = make_stream(seed, chain, draw + kDrawsPerStep * step, 0);
    uint32_t w[4];
    philox_words<Scalar>(stream, p.t, w);
    box_muller<Scalar>(w, z);
    double ratio = 0.0;
    if constexpr (sampler == kUla || sampler == kMala) {
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k)
        y[k] = ulam::langevin<Lane>(x[k], Lane::mul(scale[k], score[k]), Lane::mul(c[0], scale[k]),
                                    Lane::mul(c[1], scale[k]), z[k], s.lo, s.hi);
      proposed = evaluate_chain(s.target, p, share, y, t, wants);
      if constexpr (sampler == kMala) {
        const double total = p.sum_of<double>([&](int k) {
          const double l = scale[k];
          return mala_term(x[k], y[k], score[k], t[k], ((0.5 * static_cast<double>(c[0])) * l) * l);
        });
        ratio = mala_log_ratio(energy, proposed, total, c[2]);
      }
    } else if constexpr (sampler == kBaoab) {
      kick(v, c[0], scale, score);
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) y[k] = x[k];
      kick(y, c[1], scale, v);
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) v[k] = thermostat<Lane>(v[k], c[2], c[3], z[k]);
      kick(y, c[1], scale, v);
      proposed = evaluate_chain(s.target, p, share, y, t, wants);
      kick(v, c[0], scale, t);
    } else {
      const float half = Lane::mul(0.5f, c[0]);
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        v[k] = Lane::mul(c[3], z[k]);
        y[k] = x[k];
        t[k] = score[k];
      }
      const double before = squared_norm(p, v);
#pragma unroll 1
      for (int64_t leap = 0; leap < s.leapfrog; ++leap) {
        kick(v, leap ? c[0] : half, scale, t);
        kick(y, c[0], scale, v);
        proposed = evaluate_chain(s.target, p, share, y, t, leap + 1 == s.leapfrog);
      }
      kick(v, half, scale, t);
      ratio = hmc_log_ratio(energy, proposed, before, squared_norm(p, v), c[2]);
    }
    const bool yes = !tests || accepts(ratio, test_radius(stream));
    diverged += tests && diverges(ratio);
    if (yes) {
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        x[k] = y[k];
        score[k] = t[k];
      }
      energy = proposed;
      ++accepted;
    }
    if (--until) continue;
    until = s.thin;
    if (s.draws && exists) store4(p, s.draws + (b * count + kept) * p.d, x);
    if (s.energies && exists && p.t == 0) s.energies[b * count + kept] = energy;
    ++kept;
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (!s.moments || !exists || !p.inside[k]) continue;
      const double wide = x[k];
      moment[p.element(k)] += wide;
      moment[p.d + p.element(k)] += wide * wide;
    }
  }
  if (!exists) return;
  store4(p, s.x + b * p.d, x);
  if (s.v) store4(p, s.v + b * p.d, v);
  if (s.accepted && p.t == 0) s.accepted[b] += accepted;
  if (s.diverged && p.t == 0) s.diverged[b] += diverged;
}

__global__ void __launch_bounds__(kRunThreads) mcmc_evaluate(const Evaluate s, int threads) {
  __shared__ float columns[kMaxComponents * kRunThreads];
  const Place p(threads, s.target.dimension);
  const int64_t mine = (static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x) / threads;
  const int64_t b = mine < s.chains ? mine : s.chains - 1;
  float x[4], score[4];
  load4(p, s.x + b * p.d, x);
  const double energy = evaluate_chain(s.target, p, Shares{columns + threadIdx.x}, x, score, s.energy != nullptr);
  if (mine >= s.chains) return;
  store4(p, s.score + b * p.d, score);
  if (s.energy && p.t == 0) s.energy[b] = energy;
}

namespace {

template <class Arguments>
const char* launch_chains(void (*kernel)(const Arguments, int), const Arguments& s, const char* operation,
                          void* stream) {
  const int threads = std::max(sum_width(s.target.dimension) / 4, 1);
  const int64_t per_block = kRunThreads / threads, blocks = (s.chains + per_block - 1) / per_block;
  const Plan plan{dim3(static_cast<unsigned>(std::min<int64_t>(blocks, UINT32_MAX))), dim3(kRunThreads), 0};
  const cudaError_t error = launch(kernel, plan, stream, s, threads);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "%s: could not launch on %lld chains", operation, static_cast<long long>(s.chains));
}

}  // namespace

const char* evaluate(const Evaluate& s, void* stream) { return launch_chains(mcmc_evaluate, s, "evaluate", stream); }

const char* run(const Run& s, void* stream) {
  switch (s.sampler) {
    case kUla:
      return launch_chains(mcmc_run<kUla>, s, "run", stream);
    case kMala:
      return launch_chains(mcmc_run<kMala>, s, "run", stream);
    case kBaoab:
      return launch_chains(mcmc_run<kBaoab>, s, "run", stream);
    default:
      return launch_chains(mcmc_run<kHmc>, s, "run", stream);
  }
}

}  // namespace ulam::cuda
