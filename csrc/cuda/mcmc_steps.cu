// Langevin and Metropolis steps of given scores and energies: see kernels/ulam_kernels/mcmc.py.
#include "launch.h"
#include "mcmc_kernels.h"
#include "mcmc_noise.h"
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
    V::f a = step, c = noise, score = rows.load(s.score, i, left);
    const V::f z = s.noise ? rows.load(s.noise, i, left) : normals<Quads>(stream, i);
    if (s.scale) {
      const V::f scale = rows.shared(s.scale, i, left);
      a = V::mul(a, scale);
      c = V::mul(c, scale);
      score = V::mul(scale, score);
    }
    rows.store(s.out, i, left, ulam::langevin<V>(rows.load(s.x, i, left), score, a, c, z, s.lo, s.hi));
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
    V::f velocity = V::fma(by, rows.load(s.score, i, left), rows.load(s.v, i, left));
    if (s.drift) {
      V::f position = V::fma(along, velocity, rows.load(s.x, i, left));
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

// The sum of term(i) over [0, n) in the order of kLanes, in every thread of its warp or block: `threads` of them share
// a chain, and each holds `each` lanes, l, l + threads, ... A chain of at most threads * each elements leaves the other
// lanes at 0.
template <int threads, int each, class Term>
ULAM_DEVICE double lane_sum(int64_t n, const Term& term) {
  double lane[each];
  ULAM_UNROLL
  for (int j = 0; j < each; ++j) {
    lane[j] = 0.0;
    for (int64_t i = threadIdx.x + j * threads; i < n; i += threads * each) lane[j] += term(i);
  }
  ULAM_UNROLL
  for (int w = each / 2; w > 0; w /= 2) {
    ULAM_UNROLL
    for (int j = 0; j < w; ++j) lane[j] += lane[j + w];
  }
  if constexpr (threads > 32) {
    __shared__ double shared[threads];
    shared[threadIdx.x] = lane[0];
    __syncthreads();
    ULAM_UNROLL
    for (int w = threads / 2; w >= 32; w /= 2) {
      if (threadIdx.x < w) shared[threadIdx.x] += shared[threadIdx.x + w];
      __syncthreads();
    }
    lane[0] = shared[threadIdx.x % 32];
  }
  ULAM_UNROLL
  for (int w = 16; w > 0; w /= 2) lane[0] += __shfl_xor_sync(0xffffffffu, lane[0], w);
  return lane[0];
}

constexpr int kFew = 32, kMany = 128;  // threads of a chain of at most kFew * 4 elements, and of a longer one

template <int threads, int each>
__global__ void __launch_bounds__(128) mcmc_mala_accept(const MalaAccept s) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y, n = s.elements;
  if (b >= s.chains) return;  // whole warps
  float *const x = s.x + b * n, *const score = s.score + b * n;
  const float *const y = s.proposal + b * n, *const t = s.proposal_score + b * n;
  const double half = 0.5 * static_cast<double>(__ldg(s.step + b));
  const double sum = lane_sum<threads, each>(n, [&](int64_t i) {
    double size = half;
    if (s.scale) {
      const double l = __ldg(s.scale + i);
      size = (half * l) * l;
    }
    return mala_term(x[i], y[i], score[i], t[i], size);
  });
  const double beta = s.inverse_temperature ? __ldg(s.inverse_temperature + b) : 1.0f;
  const double proposed = s.proposal_energy[b], ratio = mala_log_ratio(s.energy[b], proposed, sum, beta);
  const bool yes = accepts(ratio, test_radius(stream_of(s.ids, b, 0, 0)));
  if constexpr (threads > 32) __syncthreads();  // all have read the energy
  __syncwarp();
  if (threadIdx.x == 0) {
    s.log_ratio[b] = ratio;
    s.accepted[b] = yes;
    if (yes) s.energy[b] = proposed;
  }
  if (!yes) return;
  for (int64_t i = threadIdx.x; i < n; i += threads) {
    x[i] = y[i];
    score[i] = t[i];
  }
}

template <int threads, int each>
__global__ void __launch_bounds__(128) mcmc_squared_norm(const SquaredNorm s) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (b >= s.chains) return;
  const float* const x = s.x + b * s.elements;
  const double sum = lane_sum<threads, each>(s.elements, [&](int64_t i) {
    const double a = x[i];
    return a * a;
  });
  if (threadIdx.x == 0) s.out[b] = sum;
}

__global__ void __launch_bounds__(128) mcmc_accept(const Accept s) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (b < s.chains) s.accepted[b] = accepts(s.log_ratio[b], test_radius(stream_of(s.ids, b, 0, 0)));
}

// A chain's words of 32 bits along x.
__global__ void __launch_bounds__(128) mcmc_select(const Pair pair, const bool* accepted, int64_t chains) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y, words = pair.bytes / 4;
  if (b >= chains || !accepted[b]) return;
  auto* const kept = reinterpret_cast<uint32_t*>(pair.kept) + b * words;
  const auto* const proposed = reinterpret_cast<const uint32_t*>(pair.proposed) + b * words;
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) kept[i] = proposed[i];
}

namespace {

// `down` chains a block.
Plan plan_chains(int64_t chains, unsigned across, unsigned down) {
  const int64_t groups = (chains + down - 1) / down;
  return {dim3(static_cast<unsigned>(std::min<int64_t>(groups, UINT32_MAX))), dim3(across, down), 0};
}

const char* result(cudaError_t error, const char* operation, int64_t chains) {
  if (error == cudaSuccess) return nullptr;
  return failure(error, "%s: could not launch on %lld chains", operation, static_cast<long long>(chains));
}

template <class Arguments>
cudaError_t launch_quads(void (*kernel)(const Arguments, uint32_t, uint32_t), const Arguments& s,
                         std::initializer_list<const float*> rows, void* stream) {
  uint32_t width = 4;
  for (const float* p : rows) width = std::min(width, access_width(s.elements, {Operand{p, kFloat32}}));
  const Plan plan = plan_quads(s.chains, s.elements);
  return launch(kernel, plan, stream, s, plan.span, width);
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
  const cudaError_t error = s.elements <= kFew * 4
                                ? launch(mcmc_mala_accept<kFew, 4>, plan_chains(s.chains, kFew, 4), stream, s)
                                : launch(mcmc_mala_accept<kMany, 8>, plan_chains(s.chains, kMany, 1), stream, s);
  return result(error, "mala_accept", s.chains);
}

const char* squared_norm(const SquaredNorm& s, void* stream) {
  const cudaError_t error = s.elements <= kFew * 4
                                ? launch(mcmc_squared_norm<kFew, 4>, plan_chains(s.chains, kFew, 4), stream, s)
                                : launch(mcmc_squared_norm<kMany, 8>, plan_chains(s.chains, kMany, 1), stream, s);
  return result(error, "squared_norm", s.chains);
}

const char* accept(const Accept& s, void* stream) {
  Plan plan = plan_chains(s.chains, 1, 128);
  plan.threads = dim3(128);
  cudaError_t error = launch(mcmc_accept, plan, stream, s);
  for (int i = 0; i < s.count && error == cudaSuccess; ++i) {
    const unsigned across = static_cast<unsigned>(std::min<int64_t>(std::max<int64_t>(s.pairs[i].bytes / 4, 1), 128));
    const Plan select = plan_chains(s.chains, across, 128 / across);
    error = launch(mcmc_select, select, stream, s.pairs[i], s.accepted, s.chains);
  }
  return result(error, "accept", s.chains);
}

}  // namespace ulam::cuda
