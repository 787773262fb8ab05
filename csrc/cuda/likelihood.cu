// Per-chain sums of a variational bound's terms, in the lanes of ulam/reduce.h: a block a chain, a cluster where chains
// are few and long, a part of a warp where they are short.
#include "kernels.h"

#include "group.h"
#include "launch.h"
#include "team.h"

namespace ulam::cuda {
namespace {

constexpr int kSumThreads = kLanes / 4;
constexpr int kMostQuads = 4;  // of a thread that shares a warp's chain

// One element, with the members that ulam/elementary.h needs beyond Scalar's.
struct One : Scalar {
  static ULAM_HD f add(f a, f b) { return sub(a, -b); }
  static ULAM_HD f less(f a, f b, f then, f otherwise) { return a < b ? then : otherwise; }
  static ULAM_HD bool any(f a) { return a != 0.0f; }
  static ULAM_DEVICE f div(f a, f b) { return __fdiv_rn(a, b); }
};

// A tensor of one chain: one number per element, or one for all.
template <bool aligned, int in_flight>
struct Numbers {
  const char* chain;
  bool per_element;
  Quads::Any quads;
  using Raws = Raw<4>[in_flight];

  ULAM_DEVICE Numbers(const float* base, bool per_element, int64_t b, int64_t elements, uint32_t width)
      : chain(reinterpret_cast<const char*>(base + (per_element ? b * elements : b))),
        per_element(per_element),
        quads(kFloat32, width) {}
  ULAM_DEVICE void load(const Places& at, Raws& raw) const {
    if (per_element) return load_quads<aligned>(quads, chain, at, raw);
    const uint32_t number = __ldg(reinterpret_cast<const uint32_t*>(chain));
    ULAM_UNROLL
    for (int k = 0; k < in_flight; ++k) raw[k] = {number, number, number, number};
  }
};

// What a chain's terms have in common: see Terms of team.h.
template <bool is_aligned, int quads, int operands>
struct Bound {
  static constexpr bool aligned = is_aligned;
  static constexpr int sums = 1, in_flight = kInFlightOf<aligned, quads>;
  Numbers<aligned, in_flight> numbers[operands];

  struct Loaded {
    typename Numbers<aligned, in_flight>::Raws of[operands];

    ULAM_DEVICE void move_up() {
      ULAM_UNROLL
      for (int o = 0; o < operands; ++o) ULAM_UNROLL
      for (int k = 1; k < in_flight; ++k) of[o][k - 1] = of[o][k];
    }
  };
  ULAM_DEVICE void load(const Places& at, Loaded& loaded) const {
    ULAM_UNROLL
    for (int k = 0; k < operands; ++k) numbers[k].load(at, loaded.of[k]);
  }
  static ULAM_DEVICE float element(const Loaded& loaded, int operand, int k, int j) {
    return Scalar::as_float(loaded.of[operand][k].w[j]);
  }
  static ULAM_DEVICE double add(double sum, float term) { return sum + static_cast<double>(term); }
};

template <bool aligned, int quads = kInFlight<aligned>>
struct Kl : Bound<aligned, quads, 4> {
  using Base = Bound<aligned, quads, 4>;
  static constexpr bool rolled = false;
  ULAM_DEVICE Kl(const GaussianKl& s, int64_t b, uint32_t width)
      : Base{{{s.mean_a, true, b, s.elements, width},
              {s.mean_b, true, b, s.elements, width},
              {s.log_var_a, s.per_element_a != 0, b, s.elements, width},
              {s.log_var_b, s.per_element_b != 0, b, s.elements, width}}} {}
  ULAM_DEVICE void terms(const typename Base::Loaded& loaded, const Places&, int k, float (*t)[4]) const {
    ULAM_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float mean_a = Base::element(loaded, 0, k, j), mean_b = Base::element(loaded, 1, k, j);
      const float log_var_a = Base::element(loaded, 2, k, j), log_var_b = Base::element(loaded, 3, k, j);
      t[0][j] = twice_kl<One>(mean_a, mean_b, kl_excess<One>(log_var_a, log_var_b), reciprocal_exp<One>(log_var_b));
    }
  }
  static ULAM_DEVICE double result(double sum) { return 0.5 * sum; }
};

template <bool aligned, int quads = kInFlight<aligned>>
struct LogBins : Bound<aligned, quads, 3> {
  using Base = Bound<aligned, quads, 3>;
  static constexpr bool rolled = true;
  const float half, edge;
  const Cdf cdf;
  ULAM_DEVICE LogBins(const DiscretisedLikelihood& s, int64_t b, uint32_t width)
      : Base{{{s.x, true, b, s.elements, width},
              {s.mean, true, b, s.elements, width},
              {s.log_scale, s.per_element != 0, b, s.elements, width}}},
        half(s.half),
        edge(s.edge),
        cdf(s.cdf) {}
  ULAM_DEVICE void terms(const typename Base::Loaded& loaded, const Places&, int k, float (*t)[4]) const {
    ULAM_UNROLL
    for (int j = 0; j < 4; ++j) {
      const float x = Base::element(loaded, 0, k, j), mean = Base::element(loaded, 1, k, j);
      const Bin<One> bin(x, mean, reciprocal_exp<One>(Base::element(loaded, 2, k, j)), half, edge);
      t[0][j] = cdf == kExact ? log_bin<One>(bin) : log_bin_tanh<One>(bin);
    }
  }
  static ULAM_DEVICE double result(double sum) { return sum; }
};

template <int size, class Terms, class Arguments>
ULAM_DEVICE void sum_chain(const Arguments& s, uint32_t width) {
  if constexpr (size == 1 || kHasTeams) {
    __shared__ double lanes[1][Team<size>::lanes];
    const Terms terms(s, Team<size>::chain(), width);
    double sum = 0.0;
    if constexpr (size == 1) {
      sum_alone(terms, static_cast<uint32_t>(s.elements), lanes, &sum);
    } else {
      __shared__ TeamRows::Terms<1> waiting;
      sum_together(terms, static_cast<uint32_t>(s.elements), waiting, lanes, &sum);
    }
    if (Team<size>::rank() == 0 && threadIdx.x == 0) s.out[Team<size>::chain()] = Terms::result(sum);
  }
}

// The same of many chains a block, 2^shift threads and up to `quads` quads of each of these.
template <int quads, class Terms, class Arguments>
ULAM_DEVICE void sum_chains(const Arguments& s, uint32_t width, uint32_t shift) {
  const LaneGroup group{shift};
  const bool exists = group.chain() < s.chains;
  const int64_t b = exists ? group.chain() : s.chains - 1;
  double sum = 0.0;
  sum_in_group<quads>(Terms(s, b, width), group, exists ? static_cast<uint32_t>(s.elements) : 0, &sum);
  if (exists && group.thread() == 0) s.out[b] = Terms::result(sum);
}

constexpr int threads_of(int size) { return size == 1 ? kSumThreads : kTeamThreads; }

}  // namespace

template <int size, bool aligned>
__global__ void __launch_bounds__(threads_of(size), 1) gaussian_kl_chain(const GaussianKl s, uint32_t width) {
  sum_chain<size, Kl<aligned>>(s, width);
}

template <int size, bool aligned>
__global__ void __launch_bounds__(threads_of(size), 1)
    discretised_chain(const DiscretisedLikelihood s, uint32_t width) {
  sum_chain<size, LogBins<aligned>>(s, width);
}

template <int quads, bool aligned>
__global__ void __launch_bounds__(kGroupThreads, 1)
    gaussian_kl_chains(const GaussianKl s, uint32_t width, uint32_t shift) {
  sum_chains<quads, Kl<aligned, quads>>(s, width, shift);
}

template <int quads, bool aligned>
__global__ void __launch_bounds__(kGroupThreads, 1)
    discretised_chains(const DiscretisedLikelihood s, uint32_t width, uint32_t shift) {
  sum_chains<quads, LogBins<aligned, quads>>(s, width, shift);
}

namespace {

// The kernels of one operation: of short chains with a quad a thread and with more, of a block, of a cluster.
template <class Arguments>
struct Kernels {
  void (*one)(Arguments, uint32_t, uint32_t);
  void (*more)(Arguments, uint32_t, uint32_t);
  void (*alone)(Arguments, uint32_t);
  void (*together)(Arguments, uint32_t);
};

template <class Arguments>
cudaError_t launch_sums(const Kernels<Arguments>& kernels, const Arguments& s, uint32_t width, void* stream) {
  if (s.elements <= kMostQuads * 4 * 32) {
    const GroupPlan plan = plan_groups(s.chains, s.elements, 1, kMostQuads);
    return launch(plan.quads == 1 ? kernels.one : kernels.more, plan.blocks, stream, s, width, plan.shift);
  }
  const auto alone = kernels.alone, together = kernels.together;
  bool clusters = few_and_long(s.chains, s.elements);
  if (clusters) {
    const ChainPlan plan = plan_blocks(s.chains, kTeam, kTeamThreads);
    cudaError_t error = has_clusters(together, &clusters);
    if (error == cudaSuccess && clusters) error = cluster_fits(together, plan, &clusters);
    if (error != cudaSuccess) return error;
    if (clusters) return launch(together, plan, stream, s, width);
  }
  return launch(alone, plan_blocks(s.chains, 1, threads_alone(s.elements, kSumThreads)), stream, s, width);
}

template <bool aligned>
constexpr Kernels<GaussianKl> kl_kernels = {gaussian_kl_chains<1, aligned>, gaussian_kl_chains<kMostQuads, aligned>,
                                            gaussian_kl_chain<1, aligned>, gaussian_kl_chain<kTeam, aligned>};
template <bool aligned>
constexpr Kernels<DiscretisedLikelihood> bin_kernels = {
    discretised_chains<1, aligned>, discretised_chains<kMostQuads, aligned>, discretised_chain<1, aligned>,
    discretised_chain<kTeam, aligned>};

template <class Arguments>
const char* told(cudaError_t error, const char* name, const Arguments& s) {
  if (error == cudaSuccess) return nullptr;
  return failure(error, "%s: could not launch on %lld chains of %lld elements", name, static_cast<long long>(s.chains),
                 static_cast<long long>(s.elements));
}

Operand element_wise(const float* address, bool per_element) { return {per_element ? address : nullptr, kFloat32}; }

}  // namespace

const char* gaussian_kl(const GaussianKl& s, void* stream) {
  if (s.chains == 0) return nullptr;
  const uint32_t width = access_width(
      s.elements, {element_wise(s.mean_a, true), element_wise(s.mean_b, true),
                   element_wise(s.log_var_a, s.per_element_a), element_wise(s.log_var_b, s.per_element_b)});
  const cudaError_t error = launch_sums(width == 4 ? kl_kernels<true> : kl_kernels<false>, s, width, stream);
  return told(error, "gaussian_kl", s);
}

const char* discretised_log_likelihood(const DiscretisedLikelihood& s, void* stream) {
  if (s.chains == 0) return nullptr;
  const uint32_t width = access_width(
      s.elements, {element_wise(s.x, true), element_wise(s.mean, true), element_wise(s.log_scale, s.per_element)});
  const cudaError_t error = launch_sums(width == 4 ? bin_kernels<true> : bin_kernels<false>, s, width, stream);
  return told(error, "discretised_log_likelihood", s);
}

}  // namespace ulam::cuda
