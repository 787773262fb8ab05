// Langevin and Metropolis steps of given scores and energies. Part of kernels_impl.h.
#pragma once

#include "mcmc_run.h"
#include "ulam/reduce.h"

namespace ulam::cpu {
namespace {

constexpr int kLongestRow = 128;  // of chains that are worked on side by side
constexpr int kPiece = 1024;      // of a long chain: as many elements as there are lanes in a sum

// The noise of some elements of a chain, made where they are used: n < 2 kPiece of them, from a multiple of 4 on.
template <class V>
void fill_piece(const Ids& ids, int64_t b, int64_t begin, int64_t n, float* z) {
  const Stream stream = make_stream(static_cast<uint64_t>(ids.seed[b]), static_cast<uint64_t>(ids.chain[b]),
                                    static_cast<uint64_t>(ids.draw[b]), 0);
  for (int64_t i = 0; i < n; i += kGroup<V>) {
    typename V::f made[V::vectors];
    normals<V>(stream, static_cast<uint32_t>((begin + i) >> 2), made);
    for (int k = 0; k < V::vectors; ++k) put<V>(z + i + k * V::width, made[k]);
  }
}

// The same of V::width short chains: chain l's noise is at z + l * kLongestRow.
template <class V>
void fill_rows(const Ids& ids, int64_t first, int64_t chains, int64_t n, float* z) {
  ChainNoise<V> noise(ids, first, chains);
  noise.start(0);
  alignas(64) float rows[kLongestRow][V::width];
  const int blocks = static_cast<int>((n + 3) / 4);
  normals_of<V>(noise, blocks, false, rows);
  for (int64_t i = 0; i < 4 * blocks; i += 4) {
    if constexpr (V::width > 1) {
      typename V::f four[4];
      alignas(64) float turned[4][V::width];
      for (int k = 0; k < 4; ++k) four[k] = get<V>(rows[i + k]);
      V::interleave(four);
      for (int k = 0; k < 4; ++k) put<V>(turned[k], four[k]);
      for (int l = 0; l < V::width; ++l)
        std::memcpy(z + l * kLongestRow + i, &turned[l % 4][l / 4 * 4], 4 * sizeof(float));
    } else {
      for (int k = 0; k < 4; ++k) z[i + k] = rows[i + k][0];
    }
  }
}

// Runs body(b, begin, n, z) over the pieces of units [begin, end): n elements of chain b and their noise, where asked.
template <class V, class Body>
void for_pieces(const Ids* ids, int64_t chains, int64_t elements, int64_t chunk, int64_t begin, int64_t end,
                const Body& body) {
  if (chunk == 0) {
    alignas(64) float z[V::width][kLongestRow];
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit * V::width, last = first + V::width < chains ? first + V::width : chains;
      if (ids) fill_rows<V>(*ids, first, chains, elements, z[0]);
      for (int64_t b = first; b < last; ++b) body(b, 0, elements, z[b - first]);
    }
    return;
  }
  alignas(64) float z[kPiece];
  for (int64_t unit = begin; unit < end; ++unit) {
    const Span span(unit, elements, chunk);
    for (int64_t i = span.begin; i < span.end; i += kPiece) {
      const int64_t n = span.end - i < kPiece ? span.end - i : kPiece;
      if (ids) fill_piece<V>(*ids, span.chain, i, n, z);
      body(span.chain, i, n, z);
    }
  }
}

// Runs body.operator()<V>(i) over [0, n), in whole vectors and the rest one by one.
template <class V, class Body>
ULAM_HD void for_vectors(int64_t n, const Body body) {
  int64_t i = 0;
  for (; i + V::width <= n; i += V::width) body.template operator()<V>(i);
  for (; i < n; ++i) body.template operator()<Portable>(i);
}

template <class V>
ULAM_HD typename V::f at(const float* p, int64_t i) {
  return V::load(p, kFloat32, i);
}

struct LangevinPiece {
  const float *x, *score, *scale, *z;
  float* out;
  float step, noise, lo, hi;

  template <class V>
  ULAM_HD void operator()(int64_t i) const {
    typename V::f a = V::set(step), c = V::set(noise), s = at<V>(score, i);
    if (scale) {
      const typename V::f l = at<V>(scale, i);
      a = V::mul(a, l);
      c = V::mul(c, l);
      s = V::mul(l, s);
    }
    V::store(out, kFloat32, i, ulam::langevin<V>(at<V>(x, i), s, a, c, at<V>(z, i), lo, hi));
  }
};

template <class V>
void langevin_units(const Langevin& s, int64_t chunk, int64_t begin, int64_t end) {
  const auto body = [&](int64_t b, int64_t i, int64_t n, const float* z) {
    const int64_t at = b * s.elements + i;
    for_vectors<V>(n, LangevinPiece{s.x + at, s.score + at, s.scale ? s.scale + i : nullptr, s.noise ? s.noise + at : z,
                                    s.out + at, s.step[b], s.noise_scale[b], s.lo, s.hi});
  };
  for_pieces<V>(s.noise ? nullptr : &s.ids, s.chains, s.elements, chunk, begin, end, body);
}

struct KickDriftPiece {
  float *x, *v;
  const float *score, *scale, *z;
  float kick, drift, keep, noise;
  bool drifts, thermal;

  template <class V>
  ULAM_HD void operator()(int64_t i) const {
    using f = typename V::f;
    f by = V::set(kick), along = V::set(drift);
    if (scale) {
      by = V::mul(by, at<V>(scale, i));
      along = V::mul(along, at<V>(scale, i));
    }
    f velocity = V::fma(by, at<V>(score, i), at<V>(v, i));
    if (drifts) {
      f position = V::fma(along, velocity, at<V>(x, i));
      if (thermal) {
        velocity = thermostat<V>(velocity, V::set(keep), V::set(noise), at<V>(z, i));
        position = V::fma(along, velocity, position);
      }
      V::store(x, kFloat32, i, position);
    }
    V::store(v, kFloat32, i, velocity);
  }
};

template <class V>
void kick_drift_units(const KickDrift& s, int64_t chunk, int64_t begin, int64_t end) {
  const auto body = [&](int64_t b, int64_t i, int64_t n, const float* z) {
    const int64_t at = b * s.elements + i;
    const auto number = [b](const float* p) { return p ? p[b] : 0.0f; };
    for_vectors<V>(n, KickDriftPiece{s.x + at, s.v + at, s.score + at, s.scale ? s.scale + i : nullptr,
                                     s.noise ? s.noise + at : z, s.kick[b], number(s.drift), number(s.keep),
                                     number(s.noise_scale), s.drift != nullptr, s.keep != nullptr});
  };
  const bool makes_noise = s.keep && !s.noise;
  for_pieces<V>(makes_noise ? &s.ids : nullptr, s.chains, s.elements, chunk, begin, end, body);
}

// Sums term(i) over [0, n) in the order of ulam::kLanes; `lanes` is scratch.
template <class Term>
inline double lane_sum(int64_t n, double* __restrict lanes, const Term& term) {
  const int64_t width = n < kLanes ? n : kLanes;
  for (int64_t l = 0; l < width; ++l) lanes[l] = term(l);
  for (int64_t first = kLanes; first < n; first += kLanes) {
    const int64_t here = n - first < kLanes ? n - first : kLanes;
    for (int64_t l = 0; l < here; ++l) lanes[l] += term(first + l);
  }
  for (int64_t w = sum_width(width) / 2, filled = width; w > 0; filled = w, w /= 2)
    for (int64_t l = 0; l + w < filled; ++l) lanes[l] += lanes[l + w];
  return lanes[0];
}

// sqrt(-2 ln u) of the Metropolis tests of a unit of chains.
template <class V>
void test_radii(const Ids& ids, int64_t first, int64_t chains, float* r) {
  ChainNoise<V> noise(ids, first, chains);
  noise.start(0);
  put<V>(r, normals_of<V>(noise, 0, true, nullptr));
}

template <class V>
void mala_accept_units(const MalaAccept& s, int64_t, int64_t begin, int64_t end) {
  const int64_t n = s.elements;
  alignas(64) double lanes[kLanes];
  alignas(64) float r[V::width];
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * V::width, last = first + V::width < s.chains ? first + V::width : s.chains;
    test_radii<V>(s.ids, first, s.chains, r);
    for (int64_t b = first; b < last; ++b) {
      float *const x = s.x + b * n, *const score = s.score + b * n;
      const float *const y = s.proposal + b * n, *const t = s.proposal_score + b * n, *const scale = s.scale;
      const double half = 0.5 * static_cast<double>(s.step[b]);
      const double sum =
          scale ? lane_sum(n, lanes,
                           [=](int64_t i) {
                             const double l = scale[i];
                             return mala_term(x[i], y[i], score[i], t[i], (half * l) * l);
                           })
                : lane_sum(n, lanes, [=](int64_t i) { return mala_term(x[i], y[i], score[i], t[i], half); });
      const double beta = s.inverse_temperature ? s.inverse_temperature[b] : 1.0f;
      s.log_ratio[b] = mala_log_ratio(s.energy[b], s.proposal_energy[b], sum, beta);
      s.accepted[b] = accepts(s.log_ratio[b], r[b - first]);
      if (!s.accepted[b]) continue;
      s.energy[b] = s.proposal_energy[b];
      std::memcpy(x, y, n * sizeof(float));
      std::memcpy(score, t, n * sizeof(float));
    }
  }
}

template <class V>
void accept_units(const Accept& s, int64_t, int64_t begin, int64_t end) {
  alignas(64) float r[V::width];
  for (int64_t group = begin; group < end; ++group) {
    const int64_t first = group * V::width, last = first + V::width < s.chains ? first + V::width : s.chains;
    test_radii<V>(s.ids, first, s.chains, r);
    for (int64_t b = first; b < last; ++b) {
      s.accepted[b] = accepts(s.log_ratio[b], r[b - first]);
      for (int i = 0; i < s.count && s.accepted[b]; ++i) {
        const Pair& p = s.pairs[i];
        std::memcpy(p.kept + b * p.bytes, p.proposed + b * p.bytes, p.bytes);
      }
    }
  }
}

template <class V>
void squared_norm_units(const SquaredNorm& s, int64_t, int64_t begin, int64_t end) {
  alignas(64) double lanes[kLanes];
  const int64_t first = begin * V::width, last = end * V::width < s.chains ? end * V::width : s.chains;
  for (int64_t b = first; b < last; ++b) {
    const float* const x = s.x + b * s.elements;
    s.out[b] = lane_sum(s.elements, lanes, [=](int64_t i) { return static_cast<double>(x[i]) * x[i]; });
  }
}

}  // namespace
}  // namespace ulam::cpu
