// Walks over a chain's elements in groups of vectors, with their noise. Part of kernels_impl.h.
#pragma once

#include "kernels.h"
#include "lanes_scalar.h"
#include "ulam/noise.h"
#include "ulam/row.h"

namespace ulam::cpu {
namespace {

// The part of a chain that one unit covers.
struct Span {
  int64_t chain, begin, end;
  Span(int64_t unit, int64_t elements, int64_t chunk) {
    const int64_t per_chain = (elements + chunk - 1) / chunk;
    chain = unit / per_chain;
    begin = (unit % per_chain) * chunk;
    end = begin + chunk < elements ? begin + chunk : elements;
  }
};

// The elements that are worked on together.
template <class V>
constexpr int kGroup = V::width * V::vectors;

// A group of normals in memory order, from the first of `block` on.
template <class V>
inline void normals(const Stream& stream, uint32_t block, typename V::f z[V::vectors]) {
  typename V::u w[V::vectors];
  V::words(stream, block, w);
  ULAM_UNROLL
  for (int k = 0; k < V::vectors; k += 4) {
    box_muller<V>(w + k, z + k);
    V::interleave(z + k);
  }
}

// Runs body<V>(i, count) over [begin, end), at most a group at a time and always whole vectors, and the rest, less
// than a vector, one block at a time, body<Portable>. begin is a multiple of 4.
template <class V, class Body>
ULAM_HD void for_groups(int64_t begin, int64_t end, const Body body) {
  int64_t i = begin;
  for (int64_t count; (count = end - i) >= V::width; i += count) {
    count = count < kGroup<V> ? count - count % V::width : kGroup<V>;
    body.template operator()<V>(i, count);
  }
  for (; i < end; i += 4) body.template operator()<Portable>(i, end - i);
}

// A tensor of one chain. `offset` is in elements.
struct Data {
  char* address;
  DType type;
  Data(const void* base, DType dtype, int64_t offset)
      : address(base ? static_cast<char*>(const_cast<void*>(base)) + offset * (dtype == kFloat32 ? 4 : 2) : nullptr),
        type(dtype) {}
  template <class V>
  ULAM_HD typename V::f load(int64_t i) const {
    return V::load(address, type, i);
  }
  template <class V>
  ULAM_HD typename V::f store(int64_t i, typename V::f x) const {
    return V::store(address, type, i, x);
  }
};

// The noise stream of one chain of a Step, a Fill or a Blend; `stage` is added to its draw.
template <class S>
inline Stream stream_of(const S& s, int64_t b, uint32_t tag = 0, uint64_t stage = 0) {
  return make_stream(static_cast<uint64_t>(s.seed[b]), static_cast<uint64_t>(s.chain[b]),
                     static_cast<uint64_t>(s.draw[b]) + stage, tag);
}

}  // namespace
}  // namespace ulam::cpu
