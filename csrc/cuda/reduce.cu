// Per-chain reductions: the quantile of |D|, and the norms of D and z.
//
// Every element is read once: the bits of |D| stay in shared memory while the order statistics are found digit by
// digit, from the top, by counting. What does not fit is read again for each of the two digits that follow the first.
// A long chain is shared by a cluster of blocks where the device has them, and short chains share a warp:
// reduce_short.cu. Sums of squares keep the lanes of ulam/reduce.h.
#include "launch.h"
#include "reduce_chain.h"
#include "reduce_short.h"

namespace ulam::cuda {
namespace {

constexpr int kReduceThreads = kLanes / 4;
constexpr int64_t kLongChain = 32768;  // a cluster has the longer ones, however many

// A digit of 31 bits: `bits` of them from `shift` on, counted in bins that follow those of the digits before it.
template <int digit>
struct Digit {
  static constexpr uint32_t shift = digit == 0 ? 20 : digit == 1 ? 9 : 0, bits = digit == 2 ? 9 : 11;
  static constexpr uint32_t bins = 1u << bits, first = 2048u * digit;
};
constexpr uint32_t kBins = Digit<2>::first + Digit<2>::bins;

// Where a digit's count ends: the digit, the rank looked for among the numbers that have it, and how many these are.
struct Found {
  uint32_t digit, rank, count;
};

// What a block shares while it looks for an order statistic.
template <int size>
struct Selection {
  uint4 bins[kBins / 4];                         // of the numbers that this block has
  uint4 sums[size == 1 ? 1 : kBins / 4 / size];  // of the team's bins, this block's part of each digit's
  uint32_t warps[3][32];
  Found found[3];
  uint32_t above;  // the least number of this block with greater first two digits than those found
  uint32_t next;   // the least number with the same first two digits and a greater last one
  uint32_t has_nan;

  ULAM_DEVICE void clear() {
    for (uint32_t i = threadIdx.x; i < kBins / 4; i += blockDim.x) bins[i] = make_uint4(0, 0, 0, 0);
    above = next = kLargest;
    has_nan = 0;
    __syncthreads();
  }
  ULAM_DEVICE void count(uint32_t bin) { atomicAdd(reinterpret_cast<uint32_t*>(bins) + bin, 1u); }
};

// The numbers that a block looks through: in rounds of a quad a thread, of which shared memory has the first `held`.
template <bool aligned, int size>
struct Numbers {
  const ReduceChain<aligned>& chain;
  uint4* const kept;
  const uint32_t rounds, held;

  ULAM_DEVICE Numbers(const ReduceChain<aligned>& chain, uint4* kept, uint32_t most)
      : chain(chain), kept(kept), rounds((chain.elements - 1) / apart() + 1), held(min(rounds, most)) {}

  static ULAM_DEVICE uint32_t apart() { return size * blockDim.x * 4; }

  // Calls use(round, quad), from round `begin` on, with what is made of global memory.
  template <class Use>
  ULAM_DEVICE void make(uint32_t begin, const Use& use) const {
    const uint32_t first = (Team<size>::rank() * blockDim.x + threadIdx.x) * 4;
#pragma unroll 1
    for (uint32_t round = begin; round < rounds; round += kInFlight<aligned>) {
      const Places at{first + round * apart(), apart(), chain.elements};
      typename ReduceChain<aligned>::Raws raw;
      chain.load(at, raw);
      ULAM_UNROLL
      for (int k = 0; k < kInFlight<aligned>; ++k)
        if (round + k < rounds) use(round + k, chain.magnitudes(raw, at, k));
    }
  }
  // Calls use(number) for all of the thread's.
  template <class Use>
  ULAM_DEVICE void each(const Use& use) const {
    const auto quad = [&](uint4 v) { use(v.x), use(v.y), use(v.z), use(v.w); };
#pragma unroll 4
    for (uint32_t round = 0; round < held; ++round) quad(kept[round * blockDim.x + threadIdx.x]);
    make(held, [&](uint32_t, uint4 v) { quad(v); });
  }
};

// Four bins of a digit, from `bin` on, over the whole team.
template <int digit, int size>
ULAM_DEVICE uint4 counted(const Selection<size>& s, uint32_t bin) {
  constexpr uint32_t slice = Digit<digit>::bins / size;
  if constexpr (size == 1) return s.bins[(Digit<digit>::first + bin) / 4];
  return Team<size>::read(s.sums[(Digit<digit>::first / size + bin % slice) / 4], bin / slice);
}

// Adds the team's bins, each block an equal part of them.
template <int digit, int size>
ULAM_DEVICE void add_bins(Selection<size>& s) {
  using D = Digit<digit>;
  constexpr uint32_t slice = D::bins / size;
  for (uint32_t bin = 4 * threadIdx.x; bin < slice; bin += 4 * blockDim.x) {
    uint4 sum = make_uint4(0, 0, 0, 0);
    ULAM_UNROLL
    for (int b = 0; b < size; ++b) {
      const uint4 v = Team<size>::read(s.bins[(D::first + Team<size>::rank() * slice + bin) / 4], b);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    s.sums[(D::first / size + bin) / 4] = sum;
  }
  Team<size>::sync();
}

// Which bins of a digit a thread looks at: all threads those of all bins.
template <int digit>
struct Run {
  uint32_t begin, end;
  ULAM_DEVICE Run() {
    const uint32_t bins = Digit<digit>::bins, length = max(bins / blockDim.x, 4u);
    begin = min(threadIdx.x * length, bins);
    end = min(begin + length, bins);
  }
};

// The bin that holds the number of the rank looked for. All threads of the team call it, and have counted.
template <int digit, int size>
ULAM_DEVICE Found find(Selection<size>& s, uint32_t rank) {
  Team<size>::sync();
  if constexpr (size > 1) add_bins<digit>(s);
  const Run<digit> run;
  uint32_t own = 0;
  for (uint32_t bin = run.begin; bin < run.end; bin += 4) {
    const uint4 v = counted<digit>(s, bin);
    own += v.x + v.y + v.z + v.w;
  }
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint32_t upto = own;  // the numbers in this thread's bins and in those before them
  ULAM_UNROLL
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t before = __shfl_up_sync(0xffffffffu, upto, step);
    if (lane >= step) upto += before;
  }
  if (lane == 31) s.warps[digit][warp] = upto;
  __syncthreads();
  for (uint32_t w = 0; w < warp; ++w) upto += s.warps[digit][w];
  uint32_t left = rank - (upto - own);
  if (left < own)  // one thread
    for (uint32_t bin = run.begin; bin < run.end; bin += 4) {
      const uint4 v = counted<digit>(s, bin);
      const uint32_t counts[4] = {v.x, v.y, v.z, v.w};
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) {
        if (left < counts[k]) s.found[digit] = {bin + k, left, counts[k]};
        left -= counts[k];  // below 0, which is far above any count, once it is found
      }
    }
  __syncthreads();
  return s.found[digit];
}

// The least number of the chain above the order statistic `found` with last digit `last`, for the first block's
// threads.
template <int size>
ULAM_DEVICE uint32_t next_number(Selection<size>& s, uint32_t found, uint32_t last) {
  const Run<2> run;
  for (uint32_t bin = run.begin; bin < run.end; bin += 4) {
    const uint4 v = counted<2>(s, bin);
    const uint32_t counts[4] = {v.x, v.y, v.z, v.w};
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k)
      if (counts[k] && bin + k > last) atomicMin(&s.next, found - last + bin + k);
  }
  __syncthreads();
  uint32_t next = s.next;
  ULAM_UNROLL
  for (int b = 0; b < size; ++b) next = min(next, Team<size>::read(s.above, b));
  return next;
}

// For the first block.
template <bool aligned, int size>
ULAM_DEVICE Scales threshold(const ReduceChain<aligned>& chain, float level, float cap, Selection<size>& s, uint4* kept,
                             uint32_t most) {
  using D1 = Digit<1>;
  const Rank rank = rank_of(level, chain.elements);
  const Numbers<aligned, size> numbers(chain, kept, most);
  s.clear();
  bool nan = false;
  const auto first = [&](uint32_t number) {
    if (number == kBeyond) return;
    nan |= number > kInfinityBits;
    s.count(number >> Digit<0>::shift);
  };
  numbers.make(0, [&](uint32_t round, uint4 v) {
    if (round < numbers.held) kept[round * blockDim.x + threadIdx.x] = v;
    first(v.x), first(v.y), first(v.z), first(v.w);
  });
  if (nan) s.has_nan = 1;
  const Found top = find<0>(s, static_cast<uint32_t>(rank.k));
  numbers.each([&](uint32_t number) {
    if (number >> Digit<0>::shift == top.digit) s.count(D1::first + (number >> D1::shift) % D1::bins);
  });
  const Found middle = find<1>(s, top.rank);
  const uint32_t prefix = top.digit << D1::bits | middle.digit;
  uint32_t above = kLargest;
  numbers.each([&](uint32_t number) {
    const uint32_t digits = number >> D1::shift;
    if (digits == prefix) s.count(Digit<2>::first + number % Digit<2>::bins);
    if (digits > prefix) above = min(above, number);
  });
  above = __reduce_min_sync(0xffffffffu, above);
  if (threadIdx.x % 32 == 0) atomicMin(&s.above, above);
  const Found last = find<2>(s, middle.rank);
  const uint32_t found = prefix << D1::shift | last.digit << Digit<2>::shift;
  Scales scales = nan_scales();
  if (Team<size>::rank() == 0) {
    const bool repeated = last.rank + 1 < last.count || rank.k + 1 == chain.elements;
    const uint32_t next = repeated ? found : next_number(s, found, last.digit);
    uint32_t has_nan = 0;
    ULAM_UNROLL
    for (int b = 0; b < size; ++b) has_nan |= Team<size>::read(s.has_nan, b);
    scales = has_nan ? threshold_scales(not_a_number(), not_a_number(), 0.0f, cap)
                     : threshold_scales(Scalar::as_float(found), Scalar::as_float(next), rank.t, cap);
  }
  if constexpr (size > 1) Team<size>::sync();
  return scales;
}

// For the first thread of the first block.
template <int size, bool given, bool aligned, class Shared>
ULAM_DEVICE Scales normalise(const ReduceChain<aligned>& chain, Shared& shared, uint4* kept) {
  const Squares<aligned, given> squares{chain};
  double total[2] = {};
  if constexpr (size == 1)
    sum_alone(squares, chain.elements, shared.lanes, total);
  else
    sum_together(squares, chain.elements, *reinterpret_cast<TeamRows::Terms<2>*>(kept), shared.lanes, total);
  return normalising_scales(total[1], total[0]);
}

}  // namespace

// Dynamic shared memory has `most` quads of numbers a thread, and in a team a TeamRows::Terms<2>.
template <int size, bool aligned>
__global__ void __launch_bounds__(size == 1 ? kReduceThreads : kTeamThreads)
    reduce_chain(const Reduce s, uint32_t missing, uint32_t width, uint32_t most) {
  if constexpr (size == 1 || kHasTeams) {
    extern __shared__ uint4 kept[];
    __shared__ union {
      Selection<size> selection;
      double lanes[2][Team<size>::lanes];
    } shared;
    const int64_t b = Team<size>::chain();
    const Request row(s.step, b, missing);
    Scales scales = row.usable ? no_scales() : nan_scales();
    if (row.flags & kReduced) {
      const ReduceChain<aligned> chain(s.step, b, row, width);
      if (row.threshold())
        scales = threshold(chain, row.c[kLow], row.c[kHigh], shared.selection, kept, most);
      else
        scales = chain.given ? normalise<size, true>(chain, shared, kept) : normalise<size, false>(chain, shared, kept);
    }
    if (Team<size>::rank() == 0 && threadIdx.x == 0) store_scales(s, b, scales);
  }
}

namespace {

// How many rounds of a chain's quads, one a thread, fit into `room` bytes of a block's shared memory.
uint32_t kept_rounds(int64_t elements, const ChainPlan& plan, size_t room) {
  const int64_t round = int64_t{4} * plan.threads.x * plan.blocks, rounds = (elements + round - 1) / round;
  return static_cast<uint32_t>(std::min<int64_t>(rounds, room / (plan.threads.x * sizeof(uint4))));
}

template <bool aligned>
cudaError_t launch_reduce(const Reduce& r, uint32_t missing, uint32_t width, void* stream) {
  const int64_t chains = r.step.chains, n = r.step.elements;
  const auto together = reduce_chain<kTeam, aligned>, alone = reduce_chain<1, aligned>;
  bool clusters = n > kLongChain || few_and_long(chains, n);
  size_t room = 0;
  if (clusters) {
    ChainPlan plan = plan_blocks(chains, kTeam, kTeamThreads);
    cudaError_t error = has_clusters(together, &clusters);
    if (error == cudaSuccess && clusters) error = open_shared_memory(together, &room);
    const uint32_t kept = kept_rounds(n, plan, room);
    plan.bytes = std::max(sizeof(TeamRows::Terms<2>), kept * kTeamThreads * sizeof(uint4));
    if (error == cudaSuccess && clusters) error = cluster_fits(together, plan, &clusters);
    if (error != cudaSuccess) return error;
    if (clusters) return launch(together, plan, stream, r, missing, width, kept);
  }
  ChainPlan plan = plan_blocks(chains, 1, threads_alone(n, kReduceThreads));
  if (const cudaError_t error = open_shared_memory(alone, &room); error != cudaSuccess) return error;
  const uint32_t kept = kept_rounds(n, plan, room);
  plan.bytes = kept * plan.threads.x * sizeof(uint4);
  return launch(alone, plan, stream, r, missing, width, kept);
}

cudaError_t launch_reduce(const Reduce& r, void* stream) {
  const Step& s = r.step;
  uint32_t missing = 0;
  if (!s.model) missing |= kReadsModel;
  if (!s.noise && !(s.seed && s.chain && s.draw)) missing |= kReadsNoise;
  const Operand state{s.state, s.state_type}, model{s.model, s.model_type, s.model_stride};
  const Operand uncond{s.uncond, s.model_type, s.model_stride}, noise{s.noise, kFloat32};
  const uint32_t width = access_width(s.elements, {state, model, uncond, noise});
  if (s.elements <= kLongestShort) return reduce_short(r, missing, width, stream);
  const auto launch = width == 4 ? launch_reduce<true> : launch_reduce<false>;
  return launch(r, missing, width, stream);
}

}  // namespace

const char* reduce(const Reduce& s, void* stream) {
  if (s.step.chains == 0 || s.step.elements == 0) return nullptr;
  const cudaError_t error = launch_reduce(s, stream);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "reduce: could not launch on %lld chains of %lld elements",
                 static_cast<long long>(s.step.chains), static_cast<long long>(s.step.elements));
}

}  // namespace ulam::cuda
