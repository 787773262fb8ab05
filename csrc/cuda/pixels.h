// Tensors [channels, pixels] whose channels lie innermost in memory, as networks run in torch.channels_last give them.
//
// The state is contiguous and its noise comes in fours of that order, so a thread holds four pixels of one channel.
// Neighbouring threads take the channels of the same pixels, C of them, and then the next four pixels: what a warp
// reads of the model at once is C neighbouring elements out of every 4 C, and its four accesses, one after the other,
// take the rest of the same lines. So each byte comes from DRAM once, and passes the first cache in pieces of C
// elements: fp32 at C = 4 touches 4 lines for 32 elements, and writing the network's input half a sector an access.
// Were the threads to follow the contiguous order instead, the same access would touch 16 lines and dirty 32 sectors,
// more than the second cache takes at the memory's speed. Staging tiles in shared memory would save those accesses that
// hit, at the price of two barriers and of a kernel for each C. The state's accesses are whole quads of C planes: whole
// sectors.
#pragma once

#include "launch.h"

namespace ulam::cuda {

// How step_pixels walks over [channels, pixels]: the channels are planes that neighbouring threads take, and blocks
// share what is along one of them. A chain whose pixels are no multiple of four, or with more channels than a block has
// threads, is one plane.
struct Planes {
  uint32_t pixels, channels, model_channels;
  uint32_t planes, plane;

  explicit Planes(const Step& s)
      : pixels(static_cast<uint32_t>(s.pixels)),
        channels(static_cast<uint32_t>(s.elements / s.pixels)),
        model_channels(static_cast<uint32_t>(s.model_stride / s.pixels)),
        planes(pixels % 4 || channels > kThreads ? 1 : channels),
        plane(static_cast<uint32_t>(s.elements / planes)) {}

  Plan plan(int64_t chains) const {
    const unsigned quads = std::min<unsigned>(kThreads / planes, (plane + 3) / 4), across = quads * planes;
    const unsigned down = static_cast<unsigned>(std::min<int64_t>(kThreads / across, chains));
    return cuda::plan(chains, plane, dim3(across, down), quads * 4);
  }
};

// Four elements a thread, neighbours in the contiguous order, of a tensor with these strides, in elements.
struct Scattered {
  DType type;
  uint32_t pixels, pixel_stride, channel_stride;
  bool whole;  // the four are of one channel, this one; otherwise a division finds it
  uint32_t channel;

  // A tensor with so many channels innermost, or contiguous, of which the thread has quads of `channel`.
  ULAM_DEVICE Scattered(DType type, const Planes& p, bool innermost, uint32_t channels, uint32_t channel)
      : type(type),
        pixels(p.pixels),
        pixel_stride(innermost ? channels : 1),
        channel_stride(innermost ? 1 : p.pixels),
        whole(p.plane == p.pixels),
        channel(channel) {}

  ULAM_DEVICE int64_t bytes(int64_t elements) const { return elements << (type == kFloat32 ? 2 : 1); }

  ULAM_DEVICE Raw<4> load(const char* chain, uint32_t i, uint32_t left) const {
    Raw<4> raw;
    uint32_t at[4];
    places(i, at);
    if (type == kFloat32)
      load<uint32_t>(chain, at, left, raw.w);
    else
      load<uint16_t>(chain, at, left, raw.w);
    return raw;
  }

  ULAM_DEVICE void store(char* chain, uint32_t i, uint32_t left, const Lanes<4>::f& v) const {
    uint32_t at[4];
    places(i, at);
    const Quads::Any operand(type, 1);
    const Raw<4> raw = operand.narrow(v);
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k)
      if (type == kFloat32 && (k == 0 || k < left)) reinterpret_cast<uint32_t*>(chain)[at[k]] = raw.w[k];
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k)
      if (type != kFloat32 && (k == 0 || k < left))
        reinterpret_cast<uint16_t*>(chain)[at[k]] = static_cast<uint16_t>(raw.w[k / 2] >> (k % 2 * 16));
  }

  // Those of 16 bits have a word each.
  ULAM_DEVICE Lanes<4>::f widen(const Raw<4>& raw) const {
    if (type == kFloat32) return cuda::widen<Float32, 4>(raw);
    Raw<4> pairs;
    pairs.w[0] = raw.w[0] | raw.w[1] << 16;
    pairs.w[1] = raw.w[2] | raw.w[3] << 16;
    return type == kBFloat16 ? cuda::widen<BFloat16, 4>(pairs) : cuda::widen<Float16, 4>(pairs);
  }

 private:
  template <class T>
  ULAM_DEVICE void load(const char* chain, const uint32_t at[4], uint32_t left, uint32_t w[4]) const {
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k)
      if (k == 0 || k < left) w[k] = reinterpret_cast<const T*>(chain)[at[k]];
  }

  // Where the elements from i on lie, from the chain's first.
  ULAM_DEVICE void places(uint32_t i, uint32_t at[4]) const {
    uint32_t c = whole ? channel : i / pixels, p = i - c * pixels;
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) at[k] = p * pixel_stride + c * channel_stride + k * pixel_stride;
    if (whole) return;
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) {
      at[k] = p * pixel_stride + c * channel_stride;
      if (++p == pixels) p = 0, ++c;
    }
  }
};

}  // namespace ulam::cuda
