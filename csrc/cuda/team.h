// What the reductions over a chain have in common: the blocks that share a chain, several loads in flight, and sums in
// the fixed order.
#pragma once

#include "lanes.h"
#include "ulam/reduce.h"

namespace ulam::cuda {

constexpr int kTeam = 8;           // blocks of a cluster: as many as every device with clusters can have
constexpr int kTeamThreads = 512;  // of each of them

// Quads of each operand that a thread loads before it uses the first: an aligned one takes one load, others two or
// four.
template <bool aligned>
constexpr int kInFlight = aligned ? 4 : 2;

// The same of a thread that has no more than `quads` of them.
template <bool aligned, int quads>
constexpr int kInFlightOf = quads < kInFlight<aligned> ? quads : kInFlight<aligned>;

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasTeams = false;  // the host does not launch them there
#else
constexpr bool kHasTeams = true;
#endif

// The blocks that share a chain: one, or a cluster along x, which read one another's shared memory. What a block reads
// of another must have been written before a sync() of both, and no block may exit before a sync() after the last read.
template <int size>
struct Team {
  static constexpr int lanes = kLanes / size;  // of a sum, a block's share

  static ULAM_DEVICE uint32_t rank() { return size == 1 ? 0 : blockIdx.x % size; }
  static ULAM_DEVICE int64_t chain() { return blockIdx.x / size; }

  static ULAM_DEVICE void sync() {
    if constexpr (size == 1) {
      __syncthreads();
    } else {
      asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
  }

  // `own`, as it is in the shared memory of block `of`.
  static ULAM_DEVICE uint32_t read(const uint32_t& own, uint32_t of) {
    if constexpr (size == 1) return own;
    uint32_t v;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(address(own, of)) : "memory");
    return v;
  }
  static ULAM_DEVICE double read(const double& own, uint32_t of) {
    if constexpr (size == 1) return own;
    double v;
    asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(v) : "r"(address(own, of)) : "memory");
    return v;
  }
  static ULAM_DEVICE uint4 read(const uint4& own, uint32_t of) {
    if constexpr (size == 1) return own;
    uint4 v;
    asm volatile("ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address(own, of))
                 : "memory");
    return v;
  }

 private:
  template <class T>
  static ULAM_DEVICE uint32_t address(const T& own, uint32_t of) {
    const uint32_t here = static_cast<uint32_t>(__cvta_generic_to_shared(&own));
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(of));
    return there;
  }
};

// Quads of a chain that lie `apart` elements from one another, the first of them at element `first`.
struct Places {
  uint32_t first, apart, elements;

  ULAM_DEVICE uint32_t operator[](int k) const { return first + k * apart; }
  ULAM_DEVICE bool inside(int k) const { return (*this)[k] < elements; }
  ULAM_DEVICE uint32_t left(int k) const { return elements - (*this)[k]; }
};

// The quads that are inside the chain; `aligned` says that of.width is 4. The type is asked around the loads, not
// between them.
template <bool aligned, int count>
ULAM_DEVICE void load_quads(const Quads::Any& of, const char* chain, const Places& at, Raw<4> (&raw)[count]) {
  const auto each = [&](const auto& load) {
    ULAM_UNROLL
    for (int k = 0; k < count; ++k)
      if (at.inside(k)) load(k);
  };
  if constexpr (!aligned)
    each([&](int k) { raw[k] = of.load(chain, at[k], at.left(k)); });
  else if (of.type == kFloat32)
    each([&](int k) { load_words<4>(chain + 4 * static_cast<uint64_t>(at[k]), raw[k].w); });
  else
    each([&](int k) { load_words<2>(chain + 2 * static_cast<uint64_t>(at[k]), raw[k].w); });
}

// Sums over a chain of `Terms::sums` numbers an element, float64, in the lanes of ulam/reduce.h. `Terms` has
//   void load(const Places&, Loaded&)                                    what it reads of the quads in flight
//   void terms(const Loaded&, const Places&, int k, float (*t)[4])       of quad k, t[sum][element]
//   static double add(double sum, float term)
//   in_flight, rolled: how many quads load() is for, and whether terms() is so much code that it must be there but once
// All threads of the team call it; the first thread of the first block gets the sums.
//
// Calls use(k) for each quad that is in flight, and goes on to the next; `rolled`: k is 0, and what is loaded moves up.
template <class Terms, class Use>
ULAM_DEVICE void each_quad(typename Terms::Loaded& loaded, Places& at, const Use& use) {
  if constexpr (Terms::rolled) {
#pragma unroll 1
    for (int k = 0; k < Terms::in_flight; ++k, at.first += at.apart) {
      use(0);
      loaded.move_up();
    }
  } else {
    ULAM_UNROLL
    for (int k = 0; k < Terms::in_flight; ++k) use(k);
    at.first += Terms::in_flight * at.apart;
  }
}

// One block: four lanes a thread, which meets their elements in order.
template <class Terms>
ULAM_DEVICE void sum_alone(const Terms& terms, uint32_t elements, double (*lanes)[kLanes], double* total) {
  constexpr int sums = Terms::sums;
  double sum[sums][4] = {};
#pragma unroll 1
  for (Places at{Quads::first(), Quads::step(), elements}; at.inside(0);) {
    typename Terms::Loaded loaded;
    terms.load(at, loaded);
    each_quad<Terms>(loaded, at, [&](int k) {
      if (!at.inside(k)) return;
      float t[sums][4];
      terms.terms(loaded, at, k, t);
      ULAM_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (j >= at.left(k)) continue;
        ULAM_UNROLL
        for (int s = 0; s < sums; ++s) sum[s][j] = Terms::add(sum[s][j], t[s][j]);
      }
    });
  }
  ULAM_UNROLL
  for (int s = 0; s < sums; ++s) ULAM_UNROLL
  for (int j = 0; j < 4; ++j) lanes[s][4 * threadIdx.x + j] = sum[s][j];
  for (uint32_t width = 2 * blockDim.x; width > 0; width /= 2) {
    __syncthreads();
    for (uint32_t l = threadIdx.x; l < width; l += blockDim.x) {
      ULAM_UNROLL
      for (int s = 0; s < sums; ++s) lanes[s][l] += lanes[s][l + width];
    }
  }
  __syncthreads();
  ULAM_UNROLL
  for (int s = 0; s < sums; ++s) total[s] = lanes[s][0];
}

// A team: each block has 128 lanes, a warp the part of them of kLanes elements in a row. Terms go through shared memory
// to the thread that has their lane: the next rows are written while the last are added.
struct TeamRows {
  static constexpr int lanes = Team<kTeam>::lanes, rows = kTeamThreads / 32;
  static_assert(lanes == 4 * 32, "a warp has a quad a thread");
  template <int sums>
  using Terms = float[2][rows][sums][lanes];
};

template <class Terms>
ULAM_DEVICE void sum_together(const Terms& terms, uint32_t elements, TeamRows::Terms<Terms::sums>& waiting,
                              double (*lanes)[TeamRows::lanes], double* total) {
  using T = Team<kTeam>;
  constexpr int sums = Terms::sums, width = TeamRows::lanes, rows = TeamRows::rows;
  const uint32_t row = threadIdx.x / 32, quad = threadIdx.x % 32 * 4;
  const uint32_t of = threadIdx.x / width, lane = threadIdx.x % width;  // the sum and the lane that a thread has
  const uint32_t own = row * kLanes + T::rank() * width + quad;
  double sum = 0.0;
  uint32_t side = 0;
#pragma unroll 1
  for (Places at{own, rows * kLanes, elements}; at.first - own < elements;) {
    typename Terms::Loaded loaded;
    terms.load(at, loaded);
    each_quad<Terms>(loaded, at, [&](int k) {
      if (at[k] - own >= elements) return;  // the whole block
      float t[sums][4] = {};                // +0 beyond the chain: no sum is -0, so adding it changes none
      if (at.inside(k)) {
        terms.terms(loaded, at, k, t);
        ULAM_UNROLL
        for (int j = 1; j < 4; ++j)
          if (j >= at.left(k)) {
            ULAM_UNROLL
            for (int s = 0; s < sums; ++s) t[s][j] = 0.0f;
          }
      }
      ULAM_UNROLL
      for (int s = 0; s < sums; ++s)
        *reinterpret_cast<float4*>(&waiting[side][row][s][quad]) = make_float4(t[s][0], t[s][1], t[s][2], t[s][3]);
      __syncthreads();
      if (of < sums) {
        ULAM_UNROLL
        for (int r = 0; r < rows; ++r) sum = Terms::add(sum, waiting[side][r][of][lane]);
      }
      side ^= 1;
    });
  }
  if (of < sums) lanes[of][lane] = sum;
  T::sync();
  if (T::rank() == 0) {
    if (of < sums) {
      double part[kTeam];
      ULAM_UNROLL
      for (int b = 0; b < kTeam; ++b) part[b] = T::read(lanes[of][lane], b);
      ULAM_UNROLL
      for (int half = kTeam / 2; half > 0; half /= 2) ULAM_UNROLL
      for (int b = 0; b < half; ++b) part[b] += part[b + half];
      lanes[of][lane] = part[0];
    }
    for (uint32_t half = width / 2; half > 0; half /= 2) {
      __syncthreads();
      if (of < sums && lane < half) lanes[of][lane] += lanes[of][lane + half];
    }
    __syncthreads();
    ULAM_UNROLL
    for (int s = 0; s < sums; ++s) total[s] = lanes[s][0];
  }
  T::sync();
}

}  // namespace ulam::cuda
