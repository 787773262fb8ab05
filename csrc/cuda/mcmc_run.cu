// Whole chains in one launch: see kernels/ulam_kernels/mcmc/.
//
// A few threads of a warp, at most all 32, hold a chain, each of them four neighbouring elements: one block of the
// noise. All that lives along the loop is in registers, moments and a thread's numbers of the density among it: loaded
// before the loop, stored after it. Sums over a chain go by shuffles, in the order of the contract.
#include "kernels.h"
#include "launch.h"
#include "mcmc_noise.h"
#include "mcmc_sums.h"
#include "ulam/densities.h"

namespace ulam::cuda {

struct Lane : Scalar {
  static ULAM_DEVICE f add(f a, f b) { return __fadd_rn(a, b); }
  static ULAM_DEVICE f div(f a, f b) { return __fdiv_rn(a, b); }
  static ULAM_DEVICE f root(f a) { return __fsqrt_rn(a); }
};

// How many threads share a chain, and how many elements an access may take (4, 2, 1).
struct Shape {
  int threads;
  uint32_t width;
};

// A thread's place: elements 4 t to 4 t + 3 of its chain, which `threads` threads share.
struct Place {
  int t, threads, d;
  bool inside[4];
  Quads::Any row;

  ULAM_DEVICE Place(const Shape& shape, int64_t dimension)
      : t(threadIdx.x & (shape.threads - 1)),
        threads(shape.threads),
        d(static_cast<int>(dimension)),
        row(kFloat32, shape.width) {
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) inside[k] = 4 * t + k < d;
  }
  ULAM_DEVICE int element(int k) const { return 4 * t + k; }
  // The sum over the chain; elements beyond d are 0.
  template <class T, class Make>
  ULAM_DEVICE T sum_of(const Make& make) const {
    T v[4];
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) v[k] = inside[k] ? make(k) : T(0);
    return sum_of_quads(v, threads);
  }
  ULAM_DEVICE float from(int thread, float x) const { return __shfl_sync(0xffffffffu, x, thread, threads); }
};

// One warp a block: the fewer chains a block holds, the more SMs a small batch reaches. Twelve of them must fit on an
// SM, which leaves each thread 168 registers: enough for every sampler.
constexpr int kRunThreads = 32, kRunBlocks = 12;

// What a thread reads of a density at every step, loaded once: of a Gaussian the mean of its elements and the diagonal
// precision, of the others but mixtures their two numbers, in front.
struct Numbers {
  float first[4] = {}, second[4] = {};

  ULAM_DEVICE Numbers(const Target& target, const Place& p) {
    const float* const q = target.params;
    if (target.kind > kMixture) {
      first[0] = __ldg(q), first[1] = __ldg(q + 1);
    } else if (target.kind < kMixture) {
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (!p.inside[k]) continue;
        first[k] = __ldg(q + p.element(k));
        if (target.kind == kGaussianDiagonal) second[k] = __ldg(q + p.d + p.element(k));
      }
    }
  }
};

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
  return -(static_cast<double>(largest) + static_cast<double>(radius_log<Lane>(total)));
}

// The score of the thread's elements; the energy is returned, in every thread of the chain, if it is asked for.
ULAM_DEVICE double evaluate_chain(const Target& target, const Place& p, const Numbers& numbers, const Shares& share,
                                  const float x[4], float s[4], bool wants_energy) {
  const float* const q = target.params;
  float term[4] = {};
  switch (target.kind) {
    case kGaussianDiagonal:
    case kGaussian: {
      const bool full = target.kind == kGaussian;
      float u[4];
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        u[k] = p.inside[k] ? Lane::sub(x[k], numbers.first[k]) : 0.0f;
        s[k] = p.inside[k] && !full ? Lane::mul(-numbers.second[k], u[k]) : 0.0f;
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
      const DoubleWell<Lane> well(numbers.first);
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        s[k] = well.score(x[k]);
        term[k] = well.term(x[k]);
      }
      break;
    }
    case kRosenbrock: {
      const Rosenbrock<Lane> pair(numbers.first);
      pair(x[0], x[1], s, term);
      pair(x[2], x[3], s + 2, term + 2);
      break;
    }
    case kFunnel: {
      const Funnel<Lane> funnel(numbers.first, p.from(0, x[0]));
      const float squares = p.sum_of<float>([&](int k) { return p.element(k) ? Lane::mul(x[k], x[k]) : 0.0f; });
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        s[k] = p.element(k) ? funnel.score(x[k]) : funnel.first_score(squares);
        term[k] = p.element(k) ? funnel.term(x[k]) : funnel.first_term();
      }
      break;
    }
    default: {
      const Ring<Lane> ring(numbers.first, p.sum_of<float>([&](int k) { return Lane::mul(x[k], x[k]); }));
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) s[k] = Lane::mul(ring.factor, x[k]);
      return static_cast<double>(ring.energy);
    }
  }
  return wants_energy ? p.sum_of<double>([&](int k) { return static_cast<double>(term[k]); }) : 0.0;
}

// Elements beyond d are 0.
ULAM_DEVICE void load4(const Place& p, const float* row, float x[4]) {
  Raw<4> raw{};
  if (p.inside[0]) raw = p.row.load(reinterpret_cast<const char*>(row), p.element(0), p.d - p.element(0));
  ULAM_UNROLL
  for (int k = 0; k < 4; ++k) x[k] = p.inside[k] ? Lane::as_float(raw.w[k]) : 0.0f;
}

ULAM_DEVICE void store4(const Place& p, float* row, const float x[4]) {
  const Raw<4> raw{{Lane::bits(x[0]), Lane::bits(x[1]), Lane::bits(x[2]), Lane::bits(x[3])}};
  if (p.inside[0]) p.row.store(reinterpret_cast<char*>(row), p.element(0), p.d - p.element(0), raw);
}

// The sums of the kept states of a thread's elements, and of their squares.
struct Moments {
  double sum[4] = {}, squares[4] = {};

  ULAM_DEVICE void load(const Place& p, const double* chain) {
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (!p.inside[k]) continue;
      sum[k] = chain[p.element(k)];
      squares[k] = chain[p.d + p.element(k)];
    }
  }
  ULAM_DEVICE void add(const float x[4]) {
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) {
      const double wide = x[k];
      sum[k] += wide;
      squares[k] += wide * wide;
    }
  }
  ULAM_DEVICE void store(const Place& p, double* chain) const {
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (!p.inside[k]) continue;
      chain[p.element(k)] = sum[k];
      chain[p.d + p.element(k)] = squares[k];
    }
  }
};

ULAM_DEVICE void kick(float to[4], float size, const float scale[4], const float by[4]) {
  ULAM_UNROLL
  for (int k = 0; k < 4; ++k) to[k] = Lane::fma(Lane::mul(size, scale[k]), by[k], to[k]);
}

ULAM_DEVICE double squared_norm(const Place& p, const float v[4]) {
  return p.sum_of<double>([&](int k) { return static_cast<double>(v[k]) * static_cast<double>(v[k]); });
}

// Blocks of kRunThreads threads. Threads beyond the last chain work on it too and store nothing: the shuffles need
// them.
template <int sampler>
__global__ void __launch_bounds__(kRunThreads, kRunBlocks) mcmc_run(const Run s, const Shape shape) {
  __shared__ float columns[kMaxComponents * kRunThreads];
  const Shares share{columns + threadIdx.x};
  const Place p(shape, s.target.dimension);
  const Numbers numbers(s.target, p);
  const int64_t mine = (static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x) / p.threads;
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
  double energy = evaluate_chain(s.target, p, numbers, share, x, score, wants), proposed = 0.0;
  Moments moments;
  if (exists && s.moments) moments.load(p, s.moments + 2 * b * p.d);
  const int64_t count = s.steps / s.thin;
  float* draws = exists && s.draws ? s.draws + b * count * p.d : nullptr;
  double* energies = exists && s.energies && p.t == 0 ? s.energies + b * count : nullptr;
  int64_t accepted = 0, diverged = 0, until = s.thin;
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
      proposed = evaluate_chain(s.target, p, numbers, share, y, t, wants);
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
      proposed = evaluate_chain(s.target, p, numbers, share, y, t, wants);
      kick(v, c[0], scale, t);
    } else {
      float whole = c[0];
      if (c[1] != 0.0f) {
        float path[4];
        philox_words<Scalar>(make_stream(seed, chain, draw + kDrawsPerStep * step + kPathStage, 0), 0, w);
        box_muller<Scalar>(w, path);
        whole = varied_step(c[0], c[1], path[0], path[1], path[2]);
      }
      const float half = Lane::mul(0.5f, whole);
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        v[k] = Lane::mul(c[3], z[k]);
        y[k] = x[k];
        t[k] = score[k];
      }
      const double before = squared_norm(p, v);
#pragma unroll 1
      for (int64_t leap = 0; leap < s.leapfrog; ++leap) {
        kick(v, leap ? whole : half, scale, t);
        kick(y, whole, scale, v);
        proposed = evaluate_chain(s.target, p, numbers, share, y, t, leap + 1 == s.leapfrog);
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
    if (draws) {
      store4(p, draws, x);
      draws += p.d;
    }
    if (energies) *energies++ = energy;
    if (s.moments) moments.add(x);
  }
  if (!exists) return;
  store4(p, s.x + b * p.d, x);
  if (s.v) store4(p, s.v + b * p.d, v);
  if (s.moments) moments.store(p, s.moments + 2 * b * p.d);
  if (s.accepted && p.t == 0) s.accepted[b] += accepted;
  if (s.diverged && p.t == 0) s.diverged[b] += diverged;
}

__global__ void __launch_bounds__(kRunThreads) mcmc_evaluate(const Evaluate s, const Shape shape) {
  __shared__ float columns[kMaxComponents * kRunThreads];
  const Place p(shape, s.target.dimension);
  const int64_t mine = (static_cast<int64_t>(blockIdx.x) * kRunThreads + threadIdx.x) / p.threads;
  const int64_t b = mine < s.chains ? mine : s.chains - 1;
  float x[4], score[4];
  load4(p, s.x + b * p.d, x);
  const double energy =
      evaluate_chain(s.target, p, Numbers(s.target, p), Shares{columns + threadIdx.x}, x, score, s.energy != nullptr);
  if (mine >= s.chains) return;
  store4(p, s.score + b * p.d, score);
  if (s.energy && p.t == 0) s.energy[b] = energy;
}

namespace {

// `rows` are the operands that have a chain's elements side by side.
template <class Arguments>
const char* launch_chains(void (*kernel)(const Arguments, const Shape), const Arguments& s, const char* operation,
                          std::initializer_list<const float*> rows, void* stream) {
  const int threads = std::max(sum_width(s.target.dimension) / 4, 1);
  const int64_t per_block = kRunThreads / threads, blocks = (s.chains + per_block - 1) / per_block;
  const Plan plan{dim3(static_cast<unsigned>(std::min<int64_t>(blocks, UINT32_MAX))), dim3(kRunThreads), 0};
  const cudaError_t error = launch(kernel, plan, stream, s, Shape{threads, access_width(s.target.dimension, rows)});
  if (error == cudaSuccess) return nullptr;
  return failure(error, "%s: could not launch on %lld chains", operation, static_cast<long long>(s.chains));
}

const char* launch_run(void (*kernel)(const Run, const Shape), const Run& s, void* stream) {
  return launch_chains(kernel, s, "run", {s.x, s.v, s.scale, s.draws}, stream);
}

}  // namespace

const char* evaluate(const Evaluate& s, void* stream) {
  return launch_chains(mcmc_evaluate, s, "evaluate", {s.x, s.score}, stream);
}

const char* run(const Run& s, void* stream) {
  switch (s.sampler) {
    case kUla:
      return launch_run(mcmc_run<kUla>, s, stream);
    case kMala:
      return launch_run(mcmc_run<kMala>, s, stream);
    case kBaoab:
      return launch_run(mcmc_run<kBaoab>, s, stream);
    default:
      return launch_run(mcmc_run<kHmc>, s, stream);
  }
}

}  // namespace ulam::cuda
