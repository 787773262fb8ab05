// The fused step over one instruction set's lanes. Part of kernels_impl.h.
#pragma once

#include "mcmc_noise.h"
#include "step_elements.h"

namespace ulam::cpu {
namespace {

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
template <class V, int R, class Squares>
class Tiled {
 public:
  Tiled(const Step& s, const StepChain<R, Squares>& chain)
      : chain_(chain),
        pixels_(s.pixels),
        channels_(s.elements / s.pixels),
        model_channels_(s.model_stride / s.pixels),
        model_last_(s.last & kModelLast),
        net_last_(s.last & kNetLast) {}

  void run(int64_t begin, int64_t end) {
    for (; begin < end; begin += kTile) {
      const int64_t stop = begin + kTile < end ? begin + kTile : end;
      StepChain<R, Squares> part = chain_;
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

  const StepChain<R, Squares>& chain_;
  const int64_t pixels_, channels_, model_channels_;
  const bool model_last_, net_last_;
  alignas(64) uint32_t tiles_[4][kTile];  // of m, the output without a condition, v, and the network's input
};

template <class V, int R, class Squares = Unrecorded>
void step_span(const Step& s, const Span& span, Squares squares = {}) {
  const StepChain<R, Squares> chain(s, span.chain, squares);
  if (!(chain.row.flags & kWrites)) return;
  if (s.last)
    Tiled<V, R, Squares>(s, chain).run(span.begin, span.end);
  else
    step_elements<V>(chain, span.begin, span.end);
}

template <class V, int R>
void step_registers(const Step& s, int64_t chunk, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Span span(unit, s.elements, chunk);
    if (!s.squares || !(s.flags[s.row[span.chain]] & static_cast<int32_t>(kReadsNoise))) {
      step_span<V, R>(s, span);
    } else {
      SquareSum sum;
      step_span<V, R>(s, span, Recorded<V>{&sum, nullptr});
      sum.add_to(s.squares + span.chain, span.end - span.begin < s.elements);
    }
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
  given.squares = nullptr;
  for (int64_t first = begin; first < end; first += W) {
    const int64_t last = first + W < end ? first + W : end;
    ChainNoise<V> noise({s.seed, s.chain, s.draw}, first, last);
    noise.start(0);
    normals_of<V>(noise, blocks, false, lanes);
    if (s.squares) add_squares<V>(s, first, last, lanes);
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
