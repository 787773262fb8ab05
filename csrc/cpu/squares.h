// How the step sums the squares of its noise, over one instruction set's lanes. Part of kernels_impl.h.
#pragma once

#include <cstring>
#include <type_traits>

#include "groups.h"
#include "ulam/squares.h"

namespace ulam::cpu {
namespace {

struct Unseen {
  template <class F>
  ULAM_HD void operator()(const F*) const {}
};

// normals() of groups.h, 2^10 times as large; see(z) gets four vectors of them at a time, in another order.
template <class V, class See>
ULAM_HD void scaled_normals(const Stream& stream, uint32_t block, typename V::f z[V::vectors], See&& see) {
  typename V::u w[V::vectors];
  V::words(stream, block, w);
  ULAM_UNROLL
  for (int k = 0; k < V::vectors; k += 4) {
    box_muller<V, kSquaresDoublings>(w + k, z + k);
    see(z + k);
    V::interleave(z + k);
  }
}

// Of a step that is not asked for them.
struct Unrecorded {
  static constexpr bool records = false;
  template <class W>
  struct Group {
    ULAM_HD explicit Group(Unrecorded) {}
    template <bool given, bool scaled = false>
    ULAM_HD void add(typename W::f) {}
    ULAM_HD void end() {}
  };
};

// The sum of a part of a chain.
struct SquareSum {
  uint64_t sum = 0;
  bool failed = false;

  // Threads may `share` a chain; both additions can then come in any order, as no sum reaches the bit of the failure.
  void add_to(int64_t* chain, bool share) const {
    auto* const total = reinterpret_cast<uint64_t*>(chain);
    if (share) {
      __atomic_fetch_add(total, sum, __ATOMIC_RELAXED);
      if (failed) __atomic_fetch_or(total, kSquaresFailed, __ATOMIC_RELAXED);
    } else {
      *total = (*total + sum) | (failed ? kSquaresFailed : 0);
    }
  }
};

// What a loop over elements adds to. Terms of generated noise are added in 32 bits first, of a few groups of vectors.
template <class V>
struct SquareLanes {
  typename V::u terms = V::set_u(0);
  typename V::whole lanes{};
  uint64_t rest = 0;  // of less than a vector
  int groups = 0;     // in `terms`
  bool failed = false;

  ULAM_HD void flush() {
    lanes = V::add_lanes(lanes, terms);
    terms = V::set_u(0);
    groups = 0;
  }
};

// What a loop over elements holds, by value.
template <class V>
struct Recorded {
  static constexpr bool records = true;
  SquareSum* sum;
  SquareLanes<V>* lanes;

  // The terms of a group of vectors, in a register until it ends.
  template <class W>
  struct Group {
    static constexpr bool whole = std::is_same_v<W, V>;
    static constexpr int kGroups = 64 / V::vectors;  // 32 bits hold 89 terms of generated noise

    SquareLanes<V>& to;
    typename W::u terms;

    ULAM_HD explicit Group(const Recorded& recorded) : to(*recorded.lanes) {
      if constexpr (whole)
        terms = to.terms;
      else
        terms = 0;
    }

    // scaled: z is 2^10 times as large, which only generated noise can be.
    template <bool given, bool scaled = false>
    ULAM_HD void add(typename W::f z) {
      if constexpr (given) {
        const typename W::f size = W::as_float(W::and_(W::bits(z), 0x7fffffffu)), limit = W::set(kSquaresLimit);
        to.failed |= W::any(W::less(size, limit, W::set(0.0f), W::set(1.0f)));
        const typename W::u term = square_term<W>(W::less(size, limit, z, W::set(0.0f)));
        if constexpr (whole)
          to.lanes = V::add_lanes(to.lanes, term);
        else
          to.rest += term;
      } else {
        terms = W::add_u(terms, scaled ? square_term_of_scaled<W>(z) : square_term<W>(z));
      }
    }
    // Four vectors of generated noise, scaled.
    ULAM_HD void operator()(const typename W::f z[4]) {
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) add<false, true>(z[k]);
    }

    ULAM_HD void end() {
      asm volatile("");  // gcc would make a loop of its own for the sum, with the noise once more
      if constexpr (whole) {
        to.terms = terms;
        if (++to.groups == kGroups) to.flush();
      } else {
        to.rest += terms;
      }
    }
  };
};

// for_groups of a body that records. On its own, so that its loop is once in the program.
template <class V, class Body>
__attribute__((noinline)) void record_groups(int64_t begin, int64_t end, Body body) {
  SquareLanes<V> all;
  body.squares.lanes = &all;
  for_groups<V>(begin, end, body);
  all.flush();
  uint64_t lanes[sizeof all.lanes / 8];
  std::memcpy(lanes, &all.lanes, sizeof lanes);
  SquareSum& sum = *body.squares.sum;
  for (const uint64_t lane : lanes) sum.sum += lane;
  sum.sum += all.rest;
  sum.failed |= all.failed;
}

// for_groups of any body with its `squares`.
template <class V, class Body>
ULAM_HD void run_groups(int64_t begin, int64_t end, const Body& body) {
  if constexpr (decltype(body.squares)::records)
    record_groups<V>(begin, end, body);
  else
    for_groups<V>(begin, end, body);
}

// Of the chains [first, last), at most a vector of them, whose rows read these normals: a lane a chain.
template <class V>
void add_squares(const Step& s, int64_t first, int64_t last, const float (*z)[V::width]) {
  uint64_t sum[V::width] = {};
  for (int64_t begin = 0; begin < s.elements; begin += 64) {
    typename V::u lanes = V::set_u(0);
    for (int64_t i = begin; i < s.elements && i < begin + 64; ++i)
      lanes = V::add_u(lanes, square_term<V>(V::load(z[i])));
    uint32_t part[V::width];
    std::memcpy(part, &lanes, sizeof part);
    for (int l = 0; l < V::width; ++l) sum[l] += part[l];
  }
  for (int64_t b = first; b < last; ++b) {
    const uint32_t flags = static_cast<uint32_t>(s.flags[s.row[b]]);
    if ((flags & kReadsNoise) && (flags & kWrites)) s.squares[b] += static_cast<int64_t>(sum[b - first]);
  }
}

}  // namespace
}  // namespace ulam::cpu
