// What the reductions read: one chain at its row, made into the numbers of its quantile or the terms of its norms.
#pragma once

#include "team.h"
#include "ulam/row.h"

namespace ulam::cuda {

constexpr uint32_t kInfinityBits = 0x7f800000u, kLargest = 0x7fffffffu, kBeyond = 0xffffffffu;

// What a chain's row asks for. A row that is outside the table, or reads what is `missing`, makes its numbers NaN.
struct Request {
  uint32_t flags = 0, reads = 0;  // no flag where the row is not usable
  bool usable = false;
  const float* c = nullptr;

  ULAM_DEVICE Request(const Step& s, int64_t b, uint32_t missing) {
    const int64_t index = __ldg(s.row + b);
    if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(s.rows)) return;
    const uint32_t found = static_cast<uint32_t>(__ldg(s.flags + index));
    c = s.coef + index * row_width(s.registers);
    reads = reduction_reads(found, c);
    usable = !(reads & missing);
    if (usable) flags = found;
  }
  ULAM_DEVICE bool threshold() const { return flags & kThreshold; }
  ULAM_DEVICE bool normalise() const { return (flags & kReduced) == kNormalise; }
};

// One chain at a row with a reduction, `in_flight` quads a thread at once.
template <bool aligned, int in_flight = kInFlight<aligned>>
struct ReduceChain {
  using V = Lanes<4>;
  using f = V::f;

  float c[kKm + 1];
  uint32_t elements, reads;
  Quads::Any state, model, noise;
  const char *r0, *output, *other, *given;
  float weight;
  bool mixes;
  Stream stream;

  // A row that asks for nothing is not read.
  ULAM_DEVICE ReduceChain(const Step& s, int64_t b, const Request& row, uint32_t width)
      : c{},
        elements(static_cast<uint32_t>(s.elements)),
        reads(row.reads),
        state(s.state_type, width),
        model(s.model_type, width),
        noise(kFloat32, width),
        r0(static_cast<const char*>(s.state) + state.bytes(b * s.elements)),
        given(s.noise ? reinterpret_cast<const char*>(s.noise + b * s.elements) : nullptr),
        weight(s.uncond ? __ldg(s.guidance + b) : 1.0f),
        mixes(weight != 0.0f && weight != 1.0f),
        stream{} {
    const int64_t skipped = model.bytes(b * s.model_stride);
    other = static_cast<const char*>(s.uncond) + skipped;
    output = weight != 0.0f ? static_cast<const char*>(s.model) + skipped : other;
    if (!(row.flags & kReduced)) return;
    c[kKx] = row.c[kKx];
    c[kKm] = row.c[kKm];
    if ((reads & kReadsNoise) && !given)
      stream = make_stream(static_cast<uint64_t>(__ldg(s.seed + b)), static_cast<uint64_t>(__ldg(s.chain + b)),
                           static_cast<uint64_t>(__ldg(s.draw + b)), 0);
  }

  // What D is made of.
  struct Raws {
    Raw<4> x[in_flight], m[in_flight], other[in_flight];
  };
  ULAM_DEVICE void load(const Places& at, Raws& raw) const {
    if (c[kKx] != 0.0f) load_quads<aligned>(state, r0, at, raw.x);
    if (reads & kReadsModel) {
      load_quads<aligned>(model, output, at, raw.m);
      if (mixes) load_quads<aligned>(model, other, at, raw.other);
    }
  }
  ULAM_DEVICE f x0(const Raws& raw, int k) const {
    f x = V::set(0.0f), m = V::set(0.0f);
    if (c[kKx] != 0.0f) x = state.widen(raw.x[k]);
    if (reads & kReadsModel) {
      m = model.widen(raw.m[k]);
      if (mixes) m = guide<V>(m, model.widen(raw.other[k]), weight);
    }
    return unclipped_x0<V>(c, x, m);
  }
  // The bits of |D|, which order like the numbers; kBeyond beyond the chain.
  ULAM_DEVICE uint4 magnitudes(const Raws& raw, const Places& at, int k) const {
    if (!at.inside(k)) return make_uint4(kBeyond, kBeyond, kBeyond, kBeyond);
    const V::u d = V::bits(x0(raw, k));
    const auto number = [&](int j) { return j < at.left(k) ? d.x[j] & kLargest : kBeyond; };
    return make_uint4(number(0), number(1), number(2), number(3));
  }
};

// The squares of D and z, of noise that is given or generated: see Terms of team.h.
template <bool is_aligned, bool given, int quads = kInFlight<is_aligned>>
struct Squares {
  static constexpr bool aligned = is_aligned, rolled = false;
  static constexpr int sums = 2, in_flight = quads;
  using Chain = ReduceChain<aligned, in_flight>;
  const Chain& chain;

  struct Loaded {
    typename Chain::Raws raw;
    Raw<4> z[given ? in_flight : 1];
  };
  ULAM_DEVICE void load(const Places& at, Loaded& loaded) const {
    chain.load(at, loaded.raw);
    if constexpr (given) load_quads<aligned>(chain.noise, chain.given, at, loaded.z);
  }
  ULAM_DEVICE void terms(const Loaded& loaded, const Places& at, int k, float (*t)[4]) const {
    typename Chain::f z;
    if constexpr (given)
      z = chain.noise.widen(loaded.z[k]);
    else
      z = normals<Quads>(chain.stream, at[k]);
    const typename Chain::f d = chain.x0(loaded.raw, k);
    ULAM_UNROLL
    for (int j = 0; j < 4; ++j) t[0][j] = d.x[j], t[1][j] = z.x[j];
  }
  // A product of two float32 is exact in float64: the same bits as its sum after a rounding of its own.
  static ULAM_DEVICE double add(double sum, float x) { return __fma_rn(static_cast<double>(x), x, sum); }
};

// Leaves a chain's scales, in one access where `out` allows it.
ULAM_DEVICE void store_scales(const Reduce& s, int64_t b, const Scales& scales) {
  float* const out = s.out + 4 * b;
  if (reinterpret_cast<uintptr_t>(s.out) % sizeof(float4) == 0)
    *reinterpret_cast<float4*>(out) = make_float4(scales.low, scales.high, scales.x0, scales.z);
  else
    out[0] = scales.low, out[1] = scales.high, out[2] = scales.x0, out[3] = scales.z;
}

}  // namespace ulam::cuda
