// Per-chain reductions: the quantile of |D|, and the norms of D and z. One block a chain.
//
// The order statistics are found digit by digit, from the top, by counting in shared memory; D is made again in each
// pass. Sums of squares keep the lanes of ulam/reduce.h, four a thread.
#include "launch.h"
#include "ulam/reduce.h"
#include "ulam/row.h"

namespace ulam::cuda {
namespace {

constexpr int kReduceThreads = kLanes / 4, kBins = 2048, kGroups = 32, kBinsInGroup = kBins / kGroups;
constexpr uint32_t kInfinityBits = 0x7f800000u;

// What a block shares while it looks for an order statistic.
struct Selection {
  uint32_t bins[kBins + kGroups];  // each group of bins is followed by a hole, so that groups begin in different banks
  uint32_t sums[kGroups];          // of the groups
  uint32_t prefix;                 // the digits found so far
  uint32_t rank;                   // of the number looked for, among those with this prefix
  uint32_t count;                  // of the numbers in the bin found last
  uint32_t next;                   // the least number above
  uint32_t has_nan;

  static ULAM_DEVICE uint32_t slot(uint32_t bin) { return bin + bin / kBinsInGroup; }
};

// One chain at a row with a reduction.
struct ReduceChain {
  using V = Lanes<4>;
  using f = V::f;

  const float *c, *given;
  uint32_t elements, reads;
  Quads::Any state, model, noise;
  const char *r0, *output, *other;
  float weight;
  bool mixes;
  Stream stream;

  ULAM_DEVICE ReduceChain(const Step& s, int64_t b, const float* c, uint32_t reads, uint32_t width)
      : c(c),
        given(s.noise ? s.noise + b * s.elements : nullptr),
        elements(static_cast<uint32_t>(s.elements)),
        reads(reads),
        state(s.state_type, width),
        model(s.model_type, width),
        noise(kFloat32, width),
        r0(static_cast<const char*>(s.state) + state.bytes(b * s.elements)),
        weight(s.uncond ? __ldg(s.guidance + b) : 1.0f),
        mixes(weight != 0.0f && weight != 1.0f),
        stream{} {
    const int64_t skipped = model.bytes(b * s.model_stride);
    other = static_cast<const char*>(s.uncond) + skipped;
    output = weight != 0.0f ? static_cast<const char*>(s.model) + skipped : other;
    if ((reads & kReadsNoise) && !given)
      stream = make_stream(static_cast<uint64_t>(__ldg(s.seed + b)), static_cast<uint64_t>(__ldg(s.chain + b)),
                           static_cast<uint64_t>(__ldg(s.draw + b)), 0);
  }

  ULAM_DEVICE f x0(uint32_t i) const {
    const uint32_t left = elements - i;
    f x = V::set(0.0f), m = V::set(0.0f);
    if (c[kKx] != 0.0f) x = state.widen(state.load(r0, i, left));
    if (reads & kReadsModel) {
      m = model.widen(model.load(output, i, left));
      if (mixes) m = guide<V>(m, model.widen(model.load(other, i, left)), weight);
    }
    return unclipped_x0<V>(c, x, m);
  }
  ULAM_DEVICE f z(uint32_t i) const {
    if (given) return noise.widen(noise.load(reinterpret_cast<const char*>(given), i, elements - i));
    return normals<Quads>(stream, i);
  }

  // Calls use(bits of |D|) for the thread's elements.
  template <class Use>
  ULAM_DEVICE void each_magnitude(const Use& use) const {
#pragma unroll 1
    for (uint32_t i = Quads::first(); i < elements; i += Quads::step()) {
      const f d = x0(i);
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k)
        if (k < elements - i) use(Scalar::bits(d.x[k]) & 0x7fffffffu);
    }
  }
};

// The bin that holds the number of the rank looked for: its digit joins the prefix. All threads call it.
ULAM_DEVICE void find_bin(Selection& s, int shift) {
  if (threadIdx.x < kGroups) {
    uint32_t sum = 0;
    for (uint32_t bin = 0; bin < kBinsInGroup; ++bin) sum += s.bins[Selection::slot(threadIdx.x * kBinsInGroup + bin)];
    s.sums[threadIdx.x] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    uint32_t rank = s.rank, bin = 0;
    while (rank >= s.sums[bin]) rank -= s.sums[bin++];
    bin *= kBinsInGroup;
    while (rank >= s.bins[Selection::slot(bin)]) rank -= s.bins[Selection::slot(bin++)];
    s.rank = rank;
    s.count = s.bins[Selection::slot(bin)];
    s.prefix |= bin << shift;
  }
  __syncthreads();
}

// One digit more of the order statistic: `bits` of it from `shift` on, those above are known.
ULAM_DEVICE void find_digit(const ReduceChain& chain, Selection& s, int shift, int bits) {
  for (uint32_t i = threadIdx.x; i < kBins + kGroups; i += blockDim.x) s.bins[i] = 0;
  __syncthreads();
  const uint32_t above = s.prefix >> shift >> bits, mask = (1u << bits) - 1;
  chain.each_magnitude([&](uint32_t number) {
    if (number > kInfinityBits) s.has_nan = 1;
    if (number >> shift >> bits == above) atomicAdd(&s.bins[Selection::slot(number >> shift & mask)], 1u);
  });
  __syncthreads();
  find_bin(s, shift);
}

ULAM_DEVICE Scales threshold(const ReduceChain& chain) {
  __shared__ Selection s;
  const Rank rank = rank_of(chain.c[kLow], chain.elements);
  if (threadIdx.x == 0) {
    s.prefix = s.has_nan = 0;
    s.rank = static_cast<uint32_t>(rank.k);
    s.next = 0x7fffffffu;
  }
  __syncthreads();
  find_digit(chain, s, 20, 11);
  find_digit(chain, s, 9, 11);
  find_digit(chain, s, 0, 9);
  const uint32_t found = s.prefix;
  const bool repeated = s.rank + 1 < s.count || rank.k + 1 == chain.elements;
  if (!repeated) {
    uint32_t least = 0x7fffffffu;
    chain.each_magnitude([&](uint32_t number) {
      if (number > found) least = min(least, number);
    });
    atomicMin(&s.next, least);
    __syncthreads();
  }
  const float a = Scalar::as_float(found), b = repeated ? a : Scalar::as_float(s.next);
  const bool is_nan = s.has_nan;
  return is_nan ? threshold_scales(not_a_number(), not_a_number(), 0.0f, chain.c[kHigh])
                : threshold_scales(a, b, rank.t, chain.c[kHigh]);
}

ULAM_DEVICE Scales normalise(const ReduceChain& chain) {
  __shared__ double d[kLanes], z[kLanes];
  double sum_d[4] = {}, sum_z[4] = {};
#pragma unroll 1
  for (uint32_t i = Quads::first(); i < chain.elements; i += Quads::step()) {
    const ReduceChain::f x0 = chain.x0(i), noise = chain.z(i);
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k)
      if (k < chain.elements - i) {
        const double x = x0.x[k], y = noise.x[k];
        sum_d[k] += x * x;
        sum_z[k] += y * y;
      }
  }
  ULAM_UNROLL
  for (int k = 0; k < 4; ++k) {
    d[4 * threadIdx.x + k] = sum_d[k];
    z[4 * threadIdx.x + k] = sum_z[k];
  }
  for (uint32_t width = 2 * blockDim.x; width > 0; width /= 2) {
    __syncthreads();
    for (uint32_t l = threadIdx.x; l < width; l += blockDim.x) {
      d[l] += d[l + width];
      z[l] += z[l + width];
    }
  }
  __syncthreads();
  return normalising_scales(z[0], d[0]);
}

}  // namespace

// A row that is outside the table, or reads what is `missing`, makes its numbers NaN.
__global__ void __launch_bounds__(kReduceThreads) reduce_chain(const Reduce s, uint32_t missing, uint32_t width) {
  const int64_t b = blockIdx.x, index = __ldg(s.step.row + b);
  Scales scales = nan_scales();
  if (static_cast<uint64_t>(index) < static_cast<uint64_t>(s.step.rows)) {
    const uint32_t flags = static_cast<uint32_t>(__ldg(s.step.flags + index));
    const float* const c = s.step.coef + index * row_width(s.step.registers);
    const uint32_t reads = reduction_reads(flags, c);
    if (!(flags & kReduced))
      scales = no_scales();
    else if (!(reads & missing)) {
      const ReduceChain chain(s.step, b, c, reads, width);
      scales = flags & kThreshold ? threshold(chain) : normalise(chain);
    }
  }
  if (threadIdx.x == 0) {
    float* const out = s.out + 4 * b;
    out[0] = scales.low, out[1] = scales.high, out[2] = scales.x0, out[3] = scales.z;
  }
}

namespace {

cudaError_t launch_reduce(const Reduce& r, void* stream) {
  const Step& s = r.step;
  uint32_t missing = 0;
  if (!s.model) missing |= kReadsModel;
  if (!s.noise && !(s.seed && s.chain && s.draw)) missing |= kReadsNoise;
  const Operand state{s.state, s.state_type}, model{s.model, s.model_type, s.model_stride};
  const Operand uncond{s.uncond, s.model_type, s.model_stride}, noise{s.noise, kFloat32};
  unsigned threads = 32;
  while (threads < kReduceThreads && 4 * threads < s.elements) threads *= 2;
  const unsigned blocks = static_cast<unsigned>(std::min<int64_t>(s.chains, UINT32_MAX));
  const Plan plan{dim3(blocks), dim3(threads), 0};
  return launch(reduce_chain, plan, stream, r, missing, access_width(s.elements, {state, model, uncond, noise}));
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
