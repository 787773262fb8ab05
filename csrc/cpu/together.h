// Four vectors worked on in step: Philox is one long chain of products, and four chains hide each other's latency.
// A type T with a member v[4] is such a pack.
#pragma once

namespace ulam::cpu {
namespace {

template <class F, class T>
inline T together(F f, T a) {
  return {f(a.v[0]), f(a.v[1]), f(a.v[2]), f(a.v[3])};
}

template <class F, class T>
inline T together(F f, T a, T b) {
  return {f(a.v[0], b.v[0]), f(a.v[1], b.v[1]), f(a.v[2], b.v[2]), f(a.v[3], b.v[3])};
}

}  // namespace
}  // namespace ulam::cpu
