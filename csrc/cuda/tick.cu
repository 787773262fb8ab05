// What stands around the fused step in a tick: the look-up of times before the network, and behind it the check of its
// outputs together with the count of rows. One launch each, nothing is allocated and nothing waited for.
//
// Outputs are looked at in words, whatever their type, so one kernel serves all of them. A long chain is shared among
// blocks. Each adds to the chain's `parts` when it has looked: one to the low half, and one to the high half if it saw
// something that is not finite. The last to add knows how all went, sets parts to 0 again and counts on. Several short
// chains share a block, a power of two of lanes each.
#include "launch.h"
#include "ulam/reduce.h"
#include "ulam/tick.h"

namespace ulam::cuda {
namespace {

constexpr int kTickThreads = 256, kLoads = 4;  // loads that a thread has under way at once
constexpr int64_t kLongestShort = 2048;        // bytes of a chain

// What a chain's cursor holds, loaded before the outputs are looked at.
struct Counts {
  int64_t row, draw, row_advance, draw_advance;

  static ULAM_DEVICE Counts of(const Advance& s, int64_t b) {
    const int64_t* const line = s.cursor + b;
    return {line[kRow * s.chains], line[kDraw * s.chains], line[kRowAdvance * s.chains], line[kDrawAdvance * s.chains]};
  }

  // Writes what becomes of them. Sums wrap.
  ULAM_DEVICE void go_on(const Advance& s, int64_t b, bool stops) const {
    int64_t *const line = s.cursor + b, *const now = s.now + b;
    const auto sum = [](int64_t x, int64_t y) {
      return static_cast<int64_t>(static_cast<uint64_t>(x) + static_cast<uint64_t>(y));
    };
    now[kDraw * s.chains] = draw;
    if (stops && row != kIdleRow) {
      now[kRow * s.chains] = kIdleRow;
      line[kFailed * s.chains] = row;
      line[kRow * s.chains] = kIdleRow;
      line[kRowAdvance * s.chains] = line[kDrawAdvance * s.chains] = 0;
    } else {
      now[kRow * s.chains] = row;
      line[kRow * s.chains] = sum(row, row_advance);
      line[kDraw * s.chains] = sum(draw, draw_advance);
    }
  }
};

// Words at even places and at odd ones, and whether one of them belongs to a number that is not finite.
struct Seen {
  const ExponentBits& e;
  uint32_t any[2] = {0, 0};

  ULAM_DEVICE explicit Seen(const ExponentBits& e) : e(e) {}
  ULAM_DEVICE void word(uint32_t w, int place) { any[place] |= (w & e.mask[place]) + e.step[place]; }
  ULAM_DEVICE void words(const uint4& w) {
    word(w.x, 0);
    word(w.y, 1);
    word(w.z, 0);
    word(w.w, 1);
  }
  ULAM_DEVICE void words(const uint2& w) {
    word(w.x, 0);
    word(w.y, 1);
  }
  ULAM_DEVICE void words(uint32_t w) { word(w, 0); }
  ULAM_DEVICE void words(uint16_t w) { word(w, 0); }
  ULAM_DEVICE bool fails() const { return (any[0] & e.top[0]) | (any[1] & e.top[1]); }
};

// Looks at n items, each `step` behind the one before: their loads do not wait for one another.
template <int n, class Item>
ULAM_DEVICE void look_at(Seen& seen, const Item* items, uint32_t step) {
  Item loaded[n];
  ULAM_UNROLL
  for (int k = 0; k < n; ++k) loaded[k] = __ldg(items + k * step);
  ULAM_UNROLL
  for (int k = 0; k < n; ++k) seen.words(loaded[k]);
}

// Looks at items i, i + step, ... below count.
template <class Item>
ULAM_DEVICE void look(Seen& seen, const Item* items, uint32_t i, uint32_t step, uint32_t count) {
#pragma unroll 1
  for (; i + (kLoads - 1) * step < count; i += kLoads * step) look_at<kLoads>(seen, items + i, step);
  if (i + step < count) {
    look_at<2>(seen, items + i, step);
    i += 2 * step;
  }
  if (i < count) look_at<1>(seen, items + i, step);
}

// A block's part of one chain, `bytes` from `at` on: vectors of 16 bytes from `first` on, as they are aligned in
// memory. The part at the chain's beginning also has the elements before the first vector of all and behind the last.
ULAM_DEVICE bool part_fails(const ExponentBits& e, const char* at, int64_t bytes, int64_t size, int64_t first,
                            uint32_t span) {
  Seen seen(e);
  const int64_t head = min(static_cast<int64_t>(-reinterpret_cast<uintptr_t>(at) % 16), bytes);
  const int64_t vectors = (bytes - head) / 16;
  if (first < vectors)
    look(seen, reinterpret_cast<const uint4*>(at + head) + first, threadIdx.x, blockDim.x,
         static_cast<uint32_t>(min(static_cast<int64_t>(span), vectors - first)));
  if (first == 0) {
    int64_t edge = threadIdx.x * size;
    if (edge >= head) edge += 16 * vectors;
    if (edge < bytes) {
      if (size == 8)
        seen.words(__ldg(reinterpret_cast<const uint2*>(at + edge)));
      else if (size == 4)
        seen.words(__ldg(reinterpret_cast<const uint32_t*>(at + edge)));
      else
        seen.words(__ldg(reinterpret_cast<const uint16_t*>(at + edge)));
    }
  }
  return seen.fails();
}

// What this block did before is done for the blocks that add later, and what those before it did for this one.
ULAM_DEVICE uint64_t add_in_order(int64_t* to, uint64_t value) {
  uint64_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u64 %0, [%1], %2;"
               : "=l"(before)
               : "l"(__cvta_generic_to_global(to)), "l"(value)
               : "memory");
  return before;
}

}  // namespace

// Chains along x, parts of a chain of `span` vectors along y.
__global__ void __launch_bounds__(kTickThreads)
    advance_long(const Advance s, const ExponentBits e, int64_t size, uint32_t span) {
  const int64_t b = blockIdx.x, first = static_cast<int64_t>(blockIdx.y) * span, bytes = s.elements * size;
  Counts counts;
  if (threadIdx.x == 0) counts = Counts::of(s, b);
  const float w = s.uncond ? __ldg(s.guidance + b) : 1.0f;
  const auto fails = [&](const void* base, int64_t stride) {
    return part_fails(e, static_cast<const char*>(base) + b * stride * size, bytes, size, first, span);
  };
  const bool model_fails = fails(s.model, s.model_stride);
  bool stops = __syncthreads_or(must_stop(model_fails, w != 1.0f && fails(s.uncond, s.uncond_stride), w));
  if (threadIdx.x > 0) return;
  if (gridDim.y > 1) {
    int64_t* const parts = s.cursor + kParts * s.chains + b;
    const uint64_t before = add_in_order(parts, 1 | static_cast<uint64_t>(stops) << 32);
    if (static_cast<uint32_t>(before) != gridDim.y - 1) return;
    stops |= before >> 32 != 0;
    *parts = 0;
  }
  counts.go_on(s, b, stops);
}

// 2^shift lanes for each chain, which has `items`.
template <class Item>
__global__ void __launch_bounds__(kTickThreads)
    advance_short(const Advance s, const ExponentBits e, int64_t size, uint32_t shift, uint32_t items) {
  __shared__ uint8_t failed[kTickThreads];  // bit 0: the model's output, bit 1: uncond
  const uint32_t here = kTickThreads >> shift, lanes = 1u << shift, lane = threadIdx.x & (lanes - 1);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * here, own = first + threadIdx.x;
  const bool is_counting = threadIdx.x < here && own < s.chains;
  Counts counts;
  float w = 1.0f;
  if (is_counting) {
    counts = Counts::of(s, own);
    if (s.uncond) w = __ldg(s.guidance + own);
  }
  const int64_t b = first + (threadIdx.x >> shift);
  const auto fails = [&](const void* base, int64_t stride) {
    Seen seen(e);
    if (base && b < s.chains)
      look(seen, reinterpret_cast<const Item*>(static_cast<const char*>(base) + b * stride * size), lane, lanes, items);
    return seen.fails();
  };
  const uint32_t of_chain = ~0u >> (32 - lanes) << (threadIdx.x & 31 & ~(lanes - 1));
  const bool model = __ballot_sync(~0u, fails(s.model, s.model_stride)) & of_chain;
  const bool uncond = __ballot_sync(~0u, fails(s.uncond, s.uncond_stride)) & of_chain;
  if (lane == 0) failed[threadIdx.x >> shift] = static_cast<uint8_t>(model | uncond << 1);
  __syncthreads();
  if (is_counting) counts.go_on(s, own, must_stop(failed[threadIdx.x] & 1, failed[threadIdx.x] & 2, w));
}

template <class T>
__global__ void __launch_bounds__(kTickThreads) look_up_times(const LookUp s) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (b >= s.chains) return;
  const int64_t row = __ldg(s.row + b);
  float from = 0.0f, to = 0.0f, guidance = 1.0f;
  if (s.weight) {
    from = __ldg(s.interval + b);
    to = __ldg(s.interval + s.chains + b);
    guidance = __ldg(s.guidance + b);
  }
  const bool is_inside = static_cast<uint64_t>(row) < static_cast<uint64_t>(s.rows);
  T t = static_cast<T>(-1);
  if constexpr (sizeof(T) == 4) t = not_a_number();
  if (is_inside) t = static_cast<const T*>(s.times)[row];
  static_cast<T*>(s.out)[b] = t;
  if (s.weight) s.weight[b] = is_inside ? weight_at(static_cast<float>(t), from, to, guidance) : 1.0f;
}

namespace {

// As many blocks as there are chains for; more than a grid can have are left for the launch to refuse.
Plan plan_chains(int64_t chains, int64_t here) {
  const int64_t blocks = std::min<int64_t>((chains + here - 1) / here, UINT32_MAX);
  return {dim3(static_cast<unsigned>(blocks)), dim3(kTickThreads), 0};
}

cudaError_t launch_long(const Advance& s, const ExponentBits& e, int64_t size, void* stream) {
  const int64_t vectors = (s.elements * size + 15) / 16;
  const int64_t warps = (vectors + 32 * kLoads - 1) / (32 * kLoads);
  const unsigned threads = static_cast<unsigned>(std::min<int64_t>(warps * 32, kTickThreads));
  const Plan p = plan(s.chains, vectors, dim3(threads), threads * kLoads);
  return launch(advance_long, p, stream, s, e, size, p.span);
}

template <class Item>
cudaError_t launch_short(const Advance& s, const ExponentBits& e, int64_t size, void* stream) {
  const uint32_t items = static_cast<uint32_t>(s.elements * size / sizeof(Item));
  uint32_t shift = 0;
  while (shift < 5 && 1u << shift < items) ++shift;
  return launch(advance_short<Item>, plan_chains(s.chains, kTickThreads >> shift), stream, s, e, size, shift, items);
}

cudaError_t launch_advance(Advance s, void* stream) {
  if (!s.model) s.elements = 0;
  if (s.elements == 0) s.model = s.uncond = nullptr;
  const ExponentBits e = exponent_bits(s.type);
  const int64_t size = bytes_of(s.type), bytes = s.elements * size;
  if (bytes > kLongestShort) return launch_long(s, e, size, stream);
  int64_t access = 16;  // bytes: what every chain is a multiple of, and begins at one
  const auto fits = [&](const void* base, int64_t stride) {
    return !base || (reinterpret_cast<uintptr_t>(base) % access == 0 && stride * size % access == 0);
  };
  while (access > 2 && !(bytes % access == 0 && fits(s.model, s.model_stride) && fits(s.uncond, s.uncond_stride)))
    access /= 2;
  if (access == 16) return launch_short<uint4>(s, e, size, stream);
  if (access == 8) return launch_short<uint2>(s, e, size, stream);
  if (access == 4) return launch_short<uint32_t>(s, e, size, stream);
  return launch_short<uint16_t>(s, e, size, stream);
}

}  // namespace

const char* advance(const Advance& s, void* stream) {
  if (s.chains == 0) return nullptr;
  const cudaError_t error = launch_advance(s, stream);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "advance: could not launch on %lld chains of %lld elements", static_cast<long long>(s.chains),
                 static_cast<long long>(s.elements));
}

const char* look_up(const LookUp& s, void* stream) {
  if (s.chains == 0) return nullptr;
  const Plan p = plan_chains(s.chains, kTickThreads);
  const cudaError_t error =
      s.whole ? launch(look_up_times<int64_t>, p, stream, s) : launch(look_up_times<float>, p, stream, s);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "look_up: could not launch on %lld chains", static_cast<long long>(s.chains));
}

}  // namespace ulam::cuda
