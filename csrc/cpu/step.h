// The fused step over one instruction set's lanes. Part of kernels_impl.h.
#pragma once

#include "groups.h"
#include "mcmc_noise.h"

namespace ulam::cpu {
namespace {

// The model's output for one chain, after guidance. What a weight of 0 or 1 leaves out is not read.
struct Output {
  float weight;
  bool reads_cond, reads_uncond;
  Data model, uncond, variance;

  Output(const Step& s, int64_t b, uint32_t flags)
      : weight(s.uncond ? s.guidance[b] : 1.0f),
        reads_cond((flags & kReadsModel) && weight != 0.0f),
        reads_uncond((flags & kReadsModel) && weight != 1.0f),
        model(s.model, s.model_type, b * s.model_stride),
        uncond(s.uncond, s.model_type, b * s.model_stride),
        variance(s.model, s.model_type, b * s.model_stride + s.elements) {}

  template <class V>
  ULAM_HD typename V::f load(int64_t i) const {
    typename V::f m = V::set(0.0f);
    if (reads_cond) m = model.load<V>(i);
    if (reads_uncond) {
      const typename V::f u = uncond.load<V>(i);
      m = reads_cond ? guide<V>(m, u, weight) : u;
    }
    return m;
  }
};

// One chain at its row: all that the loop over its elements needs, by value, so that stores cannot alias it.
template <int R>
struct StepChain {
  Row<R> row;
  bool reads_noise, makes_noise;
  int64_t register_stride;
  Output output;
  Scales scales;  // of rows with a reduction
  Data state, source, noise, net_in;
  Stream stream;

  StepChain(const Step& s, int64_t b)
      : row(s.coef + s.row[b] * row_width(R), static_cast<uint32_t>(s.flags[s.row[b]])),
        reads_noise(row.flags & kReadsNoise),
        makes_noise(reads_noise && !s.noise),
        register_stride(s.chains * s.elements),
        output(s, b, row.flags),
        scales{},
        state(s.state, s.state_type, b * s.elements),
        source(s.source, s.state_type, b * s.elements),
        noise(s.noise, kFloat32, b * s.elements),
        net_in(s.net_in, s.net_type, b * s.elements),
        stream{} {
    if (makes_noise) stream = stream_of(s, b);
    if (row.flags & kReduced) scales = reinterpret_cast<const Scales*>(s.scales)[b];
  }

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    typename V::f z[V::vectors];
    for (auto& zero : z) zero = V::set(0.0f);
    if (makes_noise) normals<V>(stream, static_cast<uint32_t>(i >> 2), z);
    ULAM_UNROLL
    for (int k = 0; k < V::vectors; ++k)
      if (k * V::width < count) element<V>(i + k * V::width, z[k]);
  }

  template <class V>
  ULAM_HD void element(int64_t i, typename V::f z) const {
    using f = typename V::f;
    f x0 = V::set(0.0f), r[R];
    const f m = output.load<V>(i);
    ULAM_UNROLL
    for (int j = 0; j < R; ++j) r[j] = row.reads >> j & 1 ? old<V>(j, i) : V::set(0.0f);
    if (row.flags & kUsesX0)
      x0 = row.flags & kReduced ? estimate_x0<V>(row.c, scales, r[0], m) : estimate_x0<V>(row.c, r[0], m);
    if (reads_noise) {
      if (!makes_noise) z = noise.load<V>(i);
      if (row.flags & kLearned) z = learned_noise<V>(row, output.variance.load<V>(i), z);
      if (row.flags & kNormalise) z = V::mul(V::set(scales.z), z);
    }
    update_registers<V>(row, r, x0, m, z);
    ULAM_UNROLL
    for (int j = 0; j < R; ++j)
      if (row.flags >> j & 1) r[j] = state.store<V>(j * register_stride + i, r[j]);
    if (net_in.address) {
      const f x = row.flags & 1 ? r[0] : old<V>(0, i);
      net_in.store<V>(i, V::mul(V::set(row.c[kNextScale]), x));
    }
  }

  template <class V>
  ULAM_HD typename V::f old(int j, int64_t i) const {
    return j == 0 ? source.load<V>(i) : state.load<V>(j * register_stride + i);
  }
};

enum class Noise { none, made, given };
enum class Form { affine, state_and_estimate, estimate_and_output };

// The commonest rows, x' = a x + b m, a x + d D or d D + b m with D = clip(kx x + km m, low, high), and + c z, on fp32
// tensors: the same bits as above, without branches.
template <Form form, Noise noise>
struct PlainChain {
  float* to;
  const float *x, *m, *given;
  float a, d, b, c, kx, km, low, high;
  Stream stream;

  template <int R>
  explicit PlainChain(const StepChain<R>& s)
      : to(reinterpret_cast<float*>(s.state.address)),
        x(reinterpret_cast<const float*>(s.source.address)),
        m(reinterpret_cast<const float*>(s.output.model.address)),
        given(reinterpret_cast<const float*>(s.noise.address)),
        a(s.row.a(0, 0)),
        d(s.row.a(0, R)),
        b(s.row.a(0, R + 1)),
        c(s.row.a(0, R + 2)),
        kx(s.row.c[kKx]),
        km(s.row.c[kKm]),
        low(s.row.c[kLow]),
        high(s.row.c[kHigh]),
        stream(s.stream) {}

  template <class V>
  ULAM_HD void operator()(int64_t i, int64_t count) const {
    typename V::f z[V::vectors];
    for (auto& zero : z) zero = V::set(0.0f);
    if (noise == Noise::made) normals<V>(stream, static_cast<uint32_t>(i >> 2), z);
    if (count >= kGroup<V>) {
      ULAM_UNROLL
      for (int k = 0; k < V::vectors; ++k) element<V>(i + k * V::width, z[k]);
    } else {
      for (int k = 0; k * V::width < count; ++k) element<V>(i + k * V::width, z[k]);
    }
  }

  template <class V>
  ULAM_HD void element(int64_t at, typename V::f z) const {
    using f = typename V::f;
    const f old = V::load(x, kFloat32, at), output = V::load(m, kFloat32, at);
    f t = V::set(-0.0f);
    if (form != Form::estimate_and_output) t = V::mul(V::set(a), old);
    if (form != Form::affine) {
      const f x0 = V::fma(V::set(km), output, V::mul(V::set(kx), old));
      t = V::fma(V::set(d), V::clip(x0, V::set(low), V::set(high)), t);
    }
    if (form != Form::state_and_estimate) t = V::fma(V::set(b), output, t);
    if (noise == Noise::given) z = V::load(given, kFloat32, at);
    if (noise != Noise::none) t = V::fma(V::set(c), z, t);
    V::store(to, kFloat32, at, t);
  }
};

// The terms of a form, as in Row.
template <Form form, int R>
constexpr uint32_t terms_of() {
  const uint32_t x = 1u, estimate = 1u << R, output = 2u << R;
  return form == Form::affine ? x | output : form == Form::state_and_estimate ? x | estimate : estimate | output;
}

// Runs a row of this form; returns false for another.
template <class V, Form form, int R>
bool plain_units(const StepChain<R>& s, int64_t begin, int64_t end) {
  const Row<R>& row = s.row;
  if (row.terms[0] != (terms_of<form, R>() | (s.reads_noise ? 4u << R : 0u))) return false;
  if (form != Form::affine && (row.c[kKx] == 0.0f || row.c[kKm] == 0.0f)) return false;
  if (!s.reads_noise)
    for_groups<V>(begin, end, PlainChain<form, Noise::none>(s));
  else if (s.makes_noise)
    for_groups<V>(begin, end, PlainChain<form, Noise::made>(s));
  else
    for_groups<V>(begin, end, PlainChain<form, Noise::given>(s));
  return true;
}

// Executes the chain's row on the elements [begin, end).
template <class V, int R>
void step_elements(const StepChain<R>& chain, int64_t begin, int64_t end) {
  const bool plain = (chain.row.flags & ~(kReadsModel | kReadsNoise | kUsesX0)) == 1 && chain.state.type == kFloat32 &&
                     chain.output.model.type == kFloat32 && !chain.output.reads_uncond && !chain.net_in.address;
  if (plain &&
      (plain_units<V, Form::affine>(chain, begin, end) || plain_units<V, Form::state_and_estimate>(chain, begin, end) ||
       plain_units<V, Form::estimate_and_output>(chain, begin, end)))
    return;
  for_groups<V>(begin, end, chain);
}

// The elements [begin, end) of a chain of [pixels, stride] in memory, in the order of [channels, pixels]: calls
// move(element in memory, place from begin on).
template <class Move>
inline void for_pixels(int64_t pixels, int64_t stride, int64_t begin, int64_t end, const Move move) {
  for (int64_t i = begin; i < end;) {
    const int64_t channel = i / pixels, stop = end < (channel + 1) * pixels ? end : (channel + 1) * pixels;
    int64_t at = (i - channel * pixels) * stride + channel;
    for (; i + 4 <= stop; i += 4, at += 4 * stride) {
      ULAM_UNROLL
      for (int k = 0; k < 4; ++k) move(at + k * stride, i - begin + k);
    }
    for (; i < stop; ++i, at += stride) move(at, i - begin);
  }
}

// Tensors whose channels lie innermost in memory pass through tiles in the first cache, in the order of the state, so
// that the loops over elements are the same.
template <class V, int R>
class Tiled {
 public:
  Tiled(const Step& s, const StepChain<R>& chain)
      : chain_(chain),
        pixels_(s.pixels),
        channels_(s.elements / s.pixels),
        model_channels_(s.model_stride / s.pixels),
        model_last_(s.last & kModelLast),
        net_last_(s.last & kNetLast) {}

  void run(int64_t begin, int64_t end) {
    for (; begin < end; begin += kTile) {
      const int64_t stop = begin + kTile < end ? begin + kTile : end;
      StepChain<R> part = chain_;
      if (model_last_) {
        Output& output = part.output;
        const Data m = chain_.output.model, uncond = chain_.output.uncond;
        if (output.reads_cond) output.model = gathered(m, 0, begin, stop, tiles_[0]);
        if (output.reads_uncond) output.uncond = gathered(uncond, 0, begin, stop, tiles_[1]);
        if (part.row.flags & kLearned) output.variance = gathered(m, channels_, begin, stop, tiles_[2]);
      }
      if (net_last_) part.net_in.address = from(tiles_[3], part.net_in.type, begin);
      step_elements<V>(part, begin, stop);
      if (net_last_) scatter(begin, stop);
    }
  }

 private:
  static constexpr int64_t kTile = 1024;

  // What a loop that counts from the chain's first element takes for the address of a tile that begins at `begin`.
  static char* from(void* tile, DType type, int64_t begin) {
    return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(tile) - begin * (type == kFloat32 ? 4 : 2));
  }

  Data gathered(Data data, int64_t channel, int64_t begin, int64_t end, void* tile) const {
    if (data.type == kFloat32)
      gather(reinterpret_cast<const uint32_t*>(data.address) + channel, begin, end, static_cast<uint32_t*>(tile));
    else
      gather(reinterpret_cast<const uint16_t*>(data.address) + channel, begin, end, static_cast<uint16_t*>(tile));
    data.address = from(tile, data.type, begin);
    return data;
  }
  template <class T>
  void gather(const T* data, int64_t begin, int64_t end, T* tile) const {
    for_pixels(pixels_, model_channels_, begin, end, [=](int64_t at, int64_t k) { tile[k] = data[at]; });
  }

  void scatter(int64_t begin, int64_t end) const {
    const Data& net = chain_.net_in;
    if (net.type == kFloat32)
      scatter(reinterpret_cast<uint32_t*>(net.address), begin, end, static_cast<const uint32_t*>(tiles_[3]));
    else
      scatter(reinterpret_cast<uint16_t*>(net.address), begin, end, reinterpret_cast<const uint16_t*>(tiles_[3]));
  }
  template <class T>
  void scatter(T* data, int64_t begin, int64_t end, const T* tile) const {
    for_pixels(pixels_, channels_, begin, end, [=](int64_t at, int64_t k) { data[at] = tile[k]; });
  }

  const StepChain<R>& chain_;
  const int64_t pixels_, channels_, model_channels_;
  const bool model_last_, net_last_;
  alignas(64) uint32_t tiles_[4][kTile];  // of m, the output without a condition, v, and the network's input
};

template <class V, int R>
void step_registers(const Step& s, int64_t chunk, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Span span(unit, s.elements, chunk);
    const StepChain<R> chain(s, span.chain);
    if (!(chain.row.flags & kWrites)) continue;
    if (s.last)
      Tiled<V, R>(s, chain).run(span.begin, span.end);
    else
      step_elements<V>(chain, span.begin, span.end);
  }
}

// The rows of the forward process, r_0 <- a r_0 + b z and r_1 <- c r_0 + d z, on fp32 tensors: of a chain of a few
// elements the row itself takes the longest. The same bits as above.
class Forward {
 public:
  Forward(const Step& s, int64_t b) : c_(s.coef + s.row[b] * row_width(2) + kUpdate) {
    const bool plain = s.registers == 2 && s.state_type == kFloat32 && !s.net_in;
    is_ = plain && s.flags[s.row[b]] == (3 | kReadsNoise) && !(c_[1] != 0 || c_[2] != 0 || c_[3] != 0) &&
          !(c_[6] != 0 || c_[7] != 0 || c_[8] != 0);
  }
  explicit operator bool() const { return is_; }

  // Element i of a chain that begins at `at`.
  void operator()(const Step& s, int64_t at, int64_t i, float z) const {
    float* const first = static_cast<float*>(s.state) + at + i;
    const float x = static_cast<const float*>(s.source)[at + i];
    *first = value(c_[0], c_[4], x, z);
    first[s.chains * s.elements] = value(c_[5], c_[9], x, z);
  }

 private:
  static float value(float a, float b, float x, float z) {
    const float t = a != 0.0f ? Scalar::mul(a, x) : b != 0.0f ? -0.0f : 0.0f;
    return b != 0.0f ? Scalar::fma(b, z, t) : t;
  }
  const float* c_;
  bool is_;
};

// Chains shorter than a group of vectors, whose noise would leave most lanes empty: it is made side by side, a lane a
// chain, and then given.
template <class V, int R>
void step_short(const Step& s, int64_t begin, int64_t end) {
  constexpr int W = V::width;
  const int blocks = static_cast<int>((s.elements + 3) / 4);
  alignas(64) float lanes[kGroup<V> + 4][W], row[kGroup<V>];
  Step given = s;
  for (int64_t first = begin; first < end; first += W) {
    const int64_t last = first + W < end ? first + W : end;
    ChainNoise<V> noise({s.seed, s.chain, s.draw}, first, last);
    noise.start(0);
    normals_of<V>(noise, blocks, false, lanes);
    for (int64_t b = first; b < last; ++b) {
      if (const Forward forward(s, b); forward) {
        for (int64_t i = 0; i < s.elements; ++i) forward(s, b * s.elements, i, lanes[i][b - first]);
        continue;
      }
      for (int64_t i = 0; i < s.elements; ++i) row[i] = lanes[i][b - first];
      // what a loop that counts from the first chain takes for its address
      given.noise = reinterpret_cast<const float*>(reinterpret_cast<uintptr_t>(row) - b * s.elements * sizeof(float));
      step_registers<V, R>(given, s.elements, b, b + 1);
    }
  }
}

template <class V>
void step_units(const Step& s, int64_t chunk, int64_t begin, int64_t end) {
  const bool is_short = V::width > 1 && s.seed && !s.noise && s.elements < kGroup<V> && end - begin >= V::width / 2;
  with_registers(s.registers, [&](auto registers) {
    if (is_short)
      step_short<V, registers>(s, begin, end);
    else
      step_registers<V, registers>(s, chunk, begin, end);
  });
}

}  // namespace
}  // namespace ulam::cpu
