// Langevin and Metropolis steps of given scores and energies: see kernels/ulam_kernels/mcmc/.
#include "kernels.h"
#include "launch.h"
#include "mcmc_noise.h"
#include "mcmc_sums.h"
#include "ulam/densities.h"
#include "ulam/reduce.h"

namespace ulam::cuda {

// How a thread reaches its quads of the chain's elements.
struct Rows {
  using V = Lanes<4>;
  Quads::Any operand;
  int64_t start;  // in bytes

  ULAM_DEVICE Rows(int64_t b, int64_t elements, uint32_t width)
      : operand(kFloat32, width), start(operand.bytes(b * elements)) {}
  ULAM_DEVICE V::f load(const float* rows, uint32_t i, uint32_t left) const {
    return operand.widen(operand.load(reinterpret_cast<const char*>(rows) + start, i, left));
  }
  ULAM_DEVICE V::f shared(const float* row, uint32_t i, uint32_t left) const {
    return operand.widen(operand.load(reinterpret_cast<const char*>(row), i, left));
  }
  ULAM_DEVICE void store(float* rows, uint32_t i, uint32_t left, const V::f& v) const {
    operand.store(reinterpret_cast<char*>(rows) + start, i, left, operand.narrow(v));
  }
};

__global__ void __launch_bounds__(kThreads) mcmc_langevin(const Langevin s, uint32_t span, uint32_t width) {
  using V = Lanes<4>;
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (b >= s.chains) return;
  const Rows rows(b, s.elements, width);
  const Stream stream = s.noise ? Stream{} : stream_of(s.ids, b, 0, 0);
  const V::f step = V::set(__ldg(s.step + b)), noise = V::set(__ldg(s.noise_scale + b));
  const uint32_t elements = static_cast<uint32_t>(s.elements);
  const uint32_t first = blockIdx.y * span, end = first + min(span, elements - first);
#pragma unroll 1
  for (uint32_t i = first + Quads::first(); i < end; i += Quads::step()) {
    const uint32_t left = end - i;
    // what is loaded is asked for first: making the noise hides the way
    V::f a = step, c = noise, score = rows.load(s.score, i, left);
    const V::f x = rows.load(s.x, i, left);
    const V::f z = s.noise ? rows.load(s.noise, i, left) : normals<Quads>(stream, i);
    if (s.scale) {
      const V::f scale = rows.shared(s.scale, i, left);
      a = V::mul(a, scale);
      c = V::mul(c, scale);
      score = V::mul(scale, score);
    }
    rows.store(s.out, i, left, ulam::langevin<V>(x, score, a, c, z, s.lo, s.hi));
  }
}

__global__ void __launch_bounds__(kThreads) mcmc_kick_drift(const KickDrift s, uint32_t span, uint32_t width) {
  using V = Lanes<4>;
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (b >= s.chains) return;
  const Rows rows(b, s.elements, width);
  const Stream stream = s.keep && !s.noise ? stream_of(s.ids, b, 0, 0) : Stream{};
  const auto number = [b](const float* p) { return V::set(p ? __ldg(p + b) : 0.0f); };
  const V::f kick = number(s.kick), drift = number(s.drift), keep = number(s.keep), noise = number(s.noise_scale);
  const uint32_t elements = static_cast<uint32_t>(s.elements);
  const uint32_t first = blockIdx.y * span, end = first + min(span, elements - first);
#pragma unroll 1
  for (uint32_t i = first + Quads::first(); i < end; i += Quads::step()) {
    const uint32_t left = end - i;
    V::f by = kick, along = drift;
    if (s.scale) {
      const V::f scale = rows.shared(s.scale, i, left);
      by = V::mul(by, scale);
      along = V::mul(along, scale);
    }
    const V::f score = rows.load(s.score, i, left), v = rows.load(s.v, i, left);
    const V::f x = s.drift ? rows.load(s.x, i, left) : V::set(0.0f);
    V::f velocity = V::fma(by, score, v);
    if (s.drift) {
      V::f position = V::fma(along, velocity, x);
      if (s.keep) {
        const V::f z = s.noise ? rows.load(s.noise, i, left) : normals<Quads>(stream, i);
        velocity = thermostat<V>(velocity, keep, noise, z);
        position = V::fma(along, velocity, position);
      }
      rows.store(s.x, i, left, position);
    }
    rows.store(s.v, i, left, velocity);
  }
}

// The threads of a chain. One of at most kFew elements has a few threads of a warp, a quad each, which stays in their
// registers. A longer one has a block of kMany: thread t has the lanes 4 t + k and 512 + 4 t + k, a quad each.
constexpr int kFew = 128, kMany = 128;

template <bool many>
struct Crew {
  int t, threads;
  int64_t b;
  bool exists;

  ULAM_DEVICE Crew(int64_t chains, int threads)
      : t(threadIdx.x & (threads - 1)),
        threads(threads),
        b((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / threads),
        exists(b < chains) {}

  // Calls use(quad, i, left) for the thread's quads: which of its lanes they are, the first element, and how many there
  // are from it to the end.
  template <class Use>
  ULAM_DEVICE void each(int64_t elements, const Use& use) const {
    const uint32_t n = exists ? static_cast<uint32_t>(elements) : 0;
    if constexpr (many) {
#pragma unroll 1
      for (uint32_t i = 4 * t; i < n; i += kLanes) {
        use(0, i, n - i);
        if (i + kLanes / 2 < n) use(1, i + kLanes / 2, n - i - kLanes / 2);
      }
    } else if (4 * t < n) {
      use(0, 4 * t, n - 4 * t);
    }
  }
  // Of the lanes of each thread's quads, in every thread of the chain.
  ULAM_DEVICE double sum(double lane[][4]) const {
    if constexpr (many) {
      __shared__ double shared[4][kMany];
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) shared[k][t] = lane[0][k] + lane[1][k];
      __syncthreads();
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        const double* const column = shared[k] + t % 32;
        lane[0][k] = (column[0] + column[64]) + (column[32] + column[96]);
      }
    }
    return sum_of_quads(lane[0], many ? 32 : threads);
  }
  ULAM_DEVICE void wait() const {
    if constexpr (many)
      __syncthreads();
    else
      __syncwarp();
  }
};

template <bool many>
__global__ void __launch_bounds__(kMany) mcmc_mala_accept(const MalaAccept s, int threads, uint32_t width) {
  using V = Lanes<4>;
  const Crew<many> crew(s.chains, threads);
  const Rows rows(crew.exists ? crew.b : 0, s.elements, width);
  const double half = crew.exists ? 0.5 * static_cast<double>(__ldg(s.step + crew.b)) : 0.0;
  double lane[many ? 2 : 1][4] = {};
  V::f proposal, proposal_score;  // of a chain of few
  crew.each(s.elements, [&](int quad, uint32_t i, uint32_t left) {
    const V::f x = rows.load(s.x, i, left), score = rows.load(s.score, i, left);
    const V::f y = rows.load(s.proposal, i, left), t = rows.load(s.proposal_score, i, left);
    const V::f scale = s.scale ? rows.shared(s.scale, i, left) : V::set(1.0f);  // 1 changes no bit
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (k >= left) continue;
      const double l = scale.x[k];
      lane[quad][k] += mala_term(x.x[k], y.x[k], score.x[k], t.x[k], (half * l) * l);
    }
    proposal = y;
    proposal_score = t;
  });
  const double sum = crew.sum(lane);
  bool yes = false;
  double ratio = 0.0, proposed = 0.0;
  if (crew.exists) {
    const double beta = s.inverse_temperature ? __ldg(s.inverse_temperature + crew.b) : 1.0f;
    proposed = s.proposal_energy[crew.b];
    ratio = mala_log_ratio(s.energy[crew.b], proposed, sum, beta);
    yes = accepts(ratio, test_radius(stream_of(s.ids, crew.b, 0, 0)));
  }
  crew.wait();  // all have read the energy
  if (crew.exists && crew.t == 0) {
    s.log_ratio[crew.b] = ratio;
    s.accepted[crew.b] = yes;
    if (yes) s.energy[crew.b] = proposed;
  }
  if (!yes) return;
  crew.each(s.elements, [&](int, uint32_t i, uint32_t left) {
    if constexpr (many) {
      proposal = rows.load(s.proposal, i, left);
      proposal_score = rows.load(s.proposal_score, i, left);
    }
    rows.store(s.x, i, left, proposal);
    rows.store(s.score, i, left, proposal_score);
  });
}

template <bool many>
__global__ void __launch_bounds__(kMany) mcmc_squared_norm(const SquaredNorm s, int threads, uint32_t width) {
  const Crew<many> crew(s.chains, threads);
  const Rows rows(crew.exists ? crew.b : 0, s.elements, width);
  double lane[many ? 2 : 1][4] = {};
  crew.each(s.elements, [&](int quad, uint32_t i, uint32_t left) {
    const Lanes<4>::f x = rows.load(s.x, i, left);
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) {
      const double a = x.x[k];
      if (k < left) lane[quad][k] += a * a;
    }
  });
  const double sum = crew.sum(lane);
  if (crew.exists && crew.t == 0) s.out[crew.b] = sum;
}

__global__ void __launch_bounds__(kThreads) mcmc_accept(const Accept s) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (b < s.chains) s.accepted[b] = accepts(s.log_ratio[b], test_radius(stream_of(s.ids, b, 0, 0)));
}

// A chain's units of `words` words of 32 bits along x.
template <int words>
ULAM_DEVICE void copy_units(char* to, const char* from, uint32_t first, uint32_t end) {
#pragma unroll 1
  for (uint32_t i = first + threadIdx.x; i < end; i += blockDim.x) {
    uint32_t w[words];
    load_words<words>(from + static_cast<uint64_t>(i) * (4 * words), w);
    store_words<words>(to + static_cast<uint64_t>(i) * (4 * words), w);
  }
}

__global__ void __launch_bounds__(kMany)
    mcmc_select(const Pair pair, const bool* accepted, int64_t chains, uint32_t span, uint32_t words) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (b >= chains || !accepted[b]) return;
  char* const kept = pair.kept + b * pair.bytes;
  const char* const proposed = pair.proposed + b * pair.bytes;
  const uint32_t units = static_cast<uint32_t>(pair.bytes / (4 * words));
  const uint32_t first = blockIdx.y * span, end = first + min(span, units - first);
  if (words == 4)
    copy_units<4>(kept, proposed, first, end);
  else if (words == 2)
    copy_units<2>(kept, proposed, first, end);
  else
    copy_units<1>(kept, proposed, first, end);
}

namespace {

const char* result(cudaError_t error, const char* operation, int64_t chains) {
  if (error == cudaSuccess) return nullptr;
  return failure(error, "%s: could not launch on %lld chains", operation, static_cast<long long>(chains));
}

template <class Arguments>
cudaError_t launch_quads(void (*kernel)(const Arguments, uint32_t, uint32_t), const Arguments& s,
                         std::initializer_list<const float*> rows, void* stream) {
  const Plan plan = plan_quads(s.chains, s.elements);
  return launch(kernel, plan, stream, s, plan.span, access_width(s.elements, rows));
}

// `few` and `many` are the kernels of shorter and of longer chains.
template <class Arguments>
cudaError_t launch_sums(void (*few)(const Arguments, int, uint32_t), void (*many)(const Arguments, int, uint32_t),
                        const Arguments& s, std::initializer_list<const float*> rows, void* stream) {
  const bool is_short = s.elements <= kFew;
  const int block = is_short ? kThreads : kMany;
  const int threads = is_short ? std::max(sum_width(s.elements) / 4, 1) : kMany;
  const int64_t each = block / threads, blocks = (s.chains + each - 1) / each;
  const Plan plan{dim3(static_cast<unsigned>(std::min<int64_t>(blocks, UINT32_MAX))), dim3(block), 0};
  return launch(is_short ? few : many, plan, stream, s, threads, access_width(s.elements, rows));
}

// By the widest units that chains and addresses are multiples of.
cudaError_t launch_select(const Pair& pair, const bool* accepted, int64_t chains, void* stream) {
  const int64_t words = pair.bytes / 4;
  const std::initializer_list<const float*> rows = {reinterpret_cast<const float*>(pair.kept),
                                                    reinterpret_cast<const float*>(pair.proposed)};
  const uint32_t width = access_width(words, rows);
  const int64_t units = words / width;
  const unsigned across = static_cast<unsigned>(std::min<int64_t>(std::max<int64_t>(units, 1), kMany));
  const Plan select = plan(chains, std::max<int64_t>(units, 1), dim3(across, kMany / across), across);
  return launch(mcmc_select, select, stream, pair, accepted, chains, select.span, width);
}

}  // namespace

const char* langevin(const Langevin& s, void* stream) {
  return result(launch_quads(mcmc_langevin, s, {s.x, s.score, s.scale, s.noise, s.out}, stream), "langevin", s.chains);
}

const char* kick_drift(const KickDrift& s, void* stream) {
  return result(launch_quads(mcmc_kick_drift, s, {s.x, s.v, s.score, s.scale, s.noise}, stream), "kick_drift",
                s.chains);
}

const char* mala_accept(const MalaAccept& s, void* stream) {
  return result(launch_sums(mcmc_mala_accept<false>, mcmc_mala_accept<true>, s,
                            {s.x, s.score, s.proposal, s.proposal_score, s.scale}, stream),
                "mala_accept", s.chains);
}

const char* squared_norm(const SquaredNorm& s, void* stream) {
  return result(launch_sums(mcmc_squared_norm<false>, mcmc_squared_norm<true>, s, {s.x}, stream), "squared_norm",
                s.chains);
}

const char* accept(const Accept& s, void* stream) {
  const int64_t blocks = (s.chains + kThreads - 1) / kThreads;
  const Plan plan{dim3(static_cast<unsigned>(std::min<int64_t>(blocks, UINT32_MAX))), dim3(kThreads), 0};
  cudaError_t error = launch(mcmc_accept, plan, stream, s);
  for (int i = 0; i < s.count && error == cudaSuccess; ++i)
    error = launch_select(s.pairs[i], s.accepted, s.chains, stream);
  return result(error, "accept", s.chains);
}

}  // namespace ulam::cuda
