// The built-in densities side by side: a lane is a chain. Part of mcmc_run.h.
#pragma once

#include "mcmc_noise.h"
#include "ulam/densities.h"

namespace ulam::cpu {
namespace {

// An array with one row of lanes per element.
template <class V>
using Lanes = float[kMaxDimension][V::width];

template <class V>
inline typename V::f get(const float* row) {
  return V::load(row, kFloat32, 0);
}
template <class V>
inline void put(float* row, typename V::f x) {
  V::store(row, kFloat32, 0, x);
}

// Sums over d rows, in the order of sum_width; the rows are overwritten.
template <class V>
typename V::f halved_sum(Lanes<V>& rows, int64_t d) {
  for (int w = sum_width(d); (w /= 2) > 0;)
    for (int l = 0; l < w && l + w < d; ++l) put<V>(rows[l], V::add(get<V>(rows[l]), get<V>(rows[l + w])));
  return get<V>(rows[0]);
}

template <int W>
void halved_sum(double (*rows)[W], int64_t d, double* sum) {
  for (int w = sum_width(d); (w /= 2) > 0;)
    for (int l = 0; l < w && l + w < d; ++l) {
      double* const __restrict to = rows[l];
      const double* const __restrict from = rows[l + w];
      for (int k = 0; k < W; ++k) to[k] += from[k];
    }
  for (int k = 0; k < W; ++k) sum[k] = rows[0][k];
}

// The terms of the energy, if they are wanted.
template <class V>
struct Terms {
  Lanes<V>* rows;
  template <class Make>
  void add(int64_t i, const Make& make) const {
    if (rows) put<V>((*rows)[i], make());
  }
};

template <class V>
void mixture(const Target& t, const Lanes<V>& x, Lanes<V>& score, Lanes<V>& scratch, double* energy) {
  using f = typename V::f;
  const float* const p = t.params;
  const int64_t d = t.dimension, count = t.components;
  alignas(64) float share[kMaxComponents][V::width];
  put<V>(share[0], V::set(0.0f));
  put<V>(scratch[0], V::set(0.0f));
  const auto away = [&](int64_t k, int64_t i) { return V::sub(V::set(p[2 * count + k * d + i]), get<V>(x[i])); };
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t i = 0; i < d; ++i) {
      const f u = away(k, i);
      put<V>(scratch[i], V::mul(u, u));
    }
    put<V>(share[k], mixture_exponent<V>(p, count, k, halved_sum<V>(scratch, d)));
  }
  f largest = get<V>(share[0]);
  for (int64_t k = 1; k < count; ++k) largest = greater<V>(largest, get<V>(share[k]));
  f total = V::set(0.0f);
  for (int64_t k = 0; k < count; ++k) {
    const f e = exp<V>(V::sub(get<V>(share[k]), largest));
    total = k ? V::add(total, e) : e;
    put<V>(share[k], e);
  }
  const f reciprocal = V::div(V::set(1.0f), total);
  for (int64_t k = 0; k < count; ++k)
    put<V>(share[k], V::mul(V::mul(get<V>(share[k]), reciprocal), V::set(p[count + k])));
  for (int64_t i = 0; i < d; ++i) {
    f s = V::mul(get<V>(share[0]), away(0, i));
    for (int64_t k = 1; k < count; ++k) s = V::fma(get<V>(share[k]), away(k, i), s);
    put<V>(score[i], s);
  }
  if (!energy) return;
  alignas(64) float m[V::width], l[V::width];
  put<V>(m, largest);
  put<V>(l, radius_log<V>(total));
  for (int k = 0; k < V::width; ++k) energy[k] = -(static_cast<double>(m[k]) + static_cast<double>(l[k]));
}

template <class V>
typename V::f squares(const Lanes<V>& x, int64_t begin, int64_t d, Lanes<V>& scratch) {
  put<V>(scratch[0], V::set(0.0f));
  for (int64_t i = 0; i < d; ++i) put<V>(scratch[i], i < begin ? V::set(0.0f) : V::mul(get<V>(x[i]), get<V>(x[i])));
  return halved_sum<V>(scratch, d);
}

// Calls back with score(i, x), the score at element i, if that depends on the element alone; else returns false.
template <class V, class Use>
bool elementwise_score(const Target& t, const Use& use) {
  using f = typename V::f;
  const float* const p = t.params;
  if (t.kind == kGaussianDiagonal) {
    const int64_t d = t.dimension;
    use([=](int64_t i, f x) { return V::mul(V::set(-p[d + i]), V::sub(x, V::set(p[i]))); });
  } else if (t.kind == kDoubleWell) {
    const DoubleWell<V> well(p);
    use([=](int64_t, f x) { return well.score(x); });
  } else {
    return false;
  }
  return true;
}

// The score, and the energies [V::width] unless null.
template <class V>
void evaluate_lanes(const Target& t, const Lanes<V>& x, Lanes<V>& score, double* energy) {
  using f = typename V::f;
  alignas(64) Lanes<V> scratch;
  const float* const p = t.params;
  const int64_t d = t.dimension;
  const Terms<V> terms{energy ? &scratch : nullptr};
  const auto gaussian_energy = [&](int64_t i, f u, f s) { terms.add(i, [&] { return gaussian_term<V>(u, s); }); };
  switch (t.kind) {
    case kGaussianDiagonal:
      for (int64_t i = 0; i < d; ++i) {
        const f u = V::sub(get<V>(x[i]), V::set(p[i])), s = V::mul(V::set(-p[d + i]), u);
        put<V>(score[i], s);
        gaussian_energy(i, u, s);
      }
      break;
    case kGaussian: {
      alignas(64) Lanes<V> away;
      for (int64_t i = 0; i < d; ++i) put<V>(away[i], V::sub(get<V>(x[i]), V::set(p[i])));
      for (int64_t i = 0; i < d; ++i) {
        const float* const row = p + d + i * d;
        f s = V::mul(V::set(-row[0]), get<V>(away[0]));
        for (int64_t j = 1; j < d; ++j) s = V::fma(V::set(-row[j]), get<V>(away[j]), s);
        put<V>(score[i], s);
        gaussian_energy(i, get<V>(away[i]), s);
      }
      break;
    }
    case kMixture:
      return mixture<V>(t, x, score, scratch, energy);
    case kDoubleWell: {
      const DoubleWell<V> well(p);
      for (int64_t i = 0; i < d; ++i) {
        const f u = get<V>(x[i]);
        put<V>(score[i], well.score(u));
        terms.add(i, [&] { return well.term(u); });
      }
      break;
    }
    case kRosenbrock: {
      const Rosenbrock<V> pair(p);
      for (int64_t i = 0; i < d; i += 2) {
        f s[2], e[2];
        pair(get<V>(x[i]), get<V>(x[i + 1]), s, e);
        for (int k = 0; k < 2; ++k) {
          put<V>(score[i + k], s[k]);
          terms.add(i + k, [&] { return e[k]; });
        }
      }
      break;
    }
    case kFunnel: {
      const Funnel<V> funnel(p, get<V>(x[0]));
      put<V>(score[0], funnel.first_score(squares<V>(x, 1, d, scratch)));
      terms.add(0, [&] { return funnel.first_term(); });
      for (int64_t i = 1; i < d; ++i) {
        const f u = get<V>(x[i]);
        put<V>(score[i], funnel.score(u));
        terms.add(i, [&] { return funnel.term(u); });
      }
      break;
    }
    default: {
      const Ring<V> ring(p, squares<V>(x, 0, d, scratch));
      for (int64_t i = 0; i < d; ++i) put<V>(score[i], V::mul(ring.factor, get<V>(x[i])));
      if (energy) {
        alignas(64) float e[V::width];
        put<V>(e, ring.energy);
        for (int k = 0; k < V::width; ++k) energy[k] = e[k];
      }
      return;
    }
  }
  if (!energy) return;
  alignas(64) double wide[kMaxDimension][V::width];
  for (int64_t i = 0; i < d; ++i)
    for (int k = 0; k < V::width; ++k) wide[i][k] = scratch[i][k];
  halved_sum<V::width>(wide, d, energy);
}

}  // namespace
}  // namespace ulam::cpu
