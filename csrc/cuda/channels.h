// Images of a few channels, so many that the compiler knows them, where the network's output has its channels innermost
// in memory.
//
// A thread holds four pixels of every channel. Of such an output these are one piece of memory, which it reads in wide
// accesses, whatever its neighbours do; of the state they are a quad of each channel's plane, and so of the noise.
// Which element belongs to which channel is known when the kernel is compiled, so it costs no instruction.
#pragma once

#include "launch.h"

namespace ulam::cuda {

// Lane 4 c + k of a thread is pixel k of channel c. `i` is the thread's first pixel, and all four are in the chain.
template <int C>
struct Channels {
  static constexpr int channels = C, lanes = 4 * C;
  using V = Lanes<lanes>;

  static ULAM_DEVICE uint32_t first() { return threadIdx.x * 4; }
  static ULAM_DEVICE uint32_t step() { return blockDim.x * 4; }
  // Of every lane: all are in the chain.
  static ULAM_DEVICE constexpr uint32_t element(int) { return 0; }

  // A tensor of planes, `pixels` elements each.
  template <class T>
  struct Planar {
    const uint32_t pixels;
    static constexpr int words = T::bytes;  // of four elements

    static ULAM_DEVICE constexpr int64_t bytes(int64_t elements) { return elements * T::bytes; }
    ULAM_DEVICE uint32_t offset(int c, uint32_t i) const { return (c * pixels + i) * T::bytes; }
    ULAM_DEVICE Raw<lanes> load(const char* chain, uint32_t i, uint32_t) const {
      Raw<lanes> raw;
      ULAM_UNROLL
      for (int c = 0; c < C; ++c) load_words<words>(chain + offset(c, i), raw.w + c * words);
      return raw;
    }
    ULAM_DEVICE void store(char* chain, uint32_t i, uint32_t, const Raw<lanes>& raw) const {
      ULAM_UNROLL
      for (int c = 0; c < C; ++c) store_words<words>(chain + offset(c, i), raw.w + c * words);
    }
    static ULAM_DEVICE typename V::f widen(const Raw<lanes>& raw) { return cuda::widen<T, lanes>(raw); }
    static ULAM_DEVICE Raw<lanes> narrow(const typename V::f& v) { return cuda::narrow<T, lanes>(v); }
  };

  // A tensor whose channels lie innermost: element C k + c of the piece that a thread has is its lane 4 c + k.
  template <class T>
  struct Interleaved {
    static constexpr int words = C * T::bytes, each = words % 4 ? 2 : 4;  // of all, and of an access

    static ULAM_DEVICE constexpr int lane(int element) { return element % C * 4 + element / C; }
    static ULAM_DEVICE constexpr int64_t bytes(int64_t elements) { return elements * T::bytes; }
    static ULAM_DEVICE uint32_t offset(uint32_t i) { return i * (C * T::bytes); }
    static ULAM_DEVICE Raw<lanes> load(const char* chain, uint32_t i, uint32_t) {
      Raw<lanes> raw;
      ULAM_UNROLL
      for (int k = 0; k < words; k += each) load_words<each>(chain + offset(i) + k * 4, raw.w + k);
      return raw;
    }
    static ULAM_DEVICE void store(char* chain, uint32_t i, uint32_t, const Raw<lanes>& raw) {
      ULAM_UNROLL
      for (int k = 0; k < words; k += each) store_words<each>(chain + offset(i) + k * 4, raw.w + k);
    }
    static ULAM_DEVICE typename V::f widen(const Raw<lanes>& raw) {
      const typename V::f in_memory = cuda::widen<T, lanes>(raw);
      typename V::f v;
      ULAM_UNROLL
      for (int k = 0; k < lanes; ++k) v.x[lane(k)] = in_memory.x[k];
      return v;
    }
    static ULAM_DEVICE Raw<lanes> narrow(const typename V::f& v) {
      return cuda::narrow<T, lanes>(V::template each<typename V::f>([&](int k) { return v.x[lane(k)]; }));
    }
  };

  // Narrows and stores at a type and a layout known only when it runs.
  static ULAM_DEVICE void store(DType type, bool innermost, uint32_t pixels, char* chains, int64_t start, uint32_t i,
                                const typename V::f& v) {
    if (type == kFloat32)
      store_known<Float32>(innermost, pixels, chains, start, i, v);
    else if (type == kBFloat16)
      store_known<BFloat16>(innermost, pixels, chains, start, i, v);
    else
      store_known<Float16>(innermost, pixels, chains, start, i, v);
  }
  template <class T>
  static ULAM_DEVICE void store_known(bool innermost, uint32_t pixels, char* chains, int64_t start, uint32_t i,
                                      const typename V::f& v) {
    if (innermost) {
      Interleaved<T>::store(chains + start * T::bytes, i, 4, Interleaved<T>::narrow(v));
    } else {
      const Planar<T> planes{pixels};
      planes.store(chains + start * T::bytes, i, 4, planes.narrow(v));
    }
  }

  static ULAM_DEVICE typename V::f normals(const Stream& stream, uint32_t i, uint32_t pixels) {
    typename V::f z;
    ULAM_UNROLL
    for (int c = 0; c < C; ++c) {
      uint32_t w[4];
      philox_words<Scalar>(stream, stream.tag | ((c * pixels + i) >> 2), w);
      box_muller<Scalar>(w, z.x + 4 * c);
    }
    return z;
  }
};

// Whether a step's tensors are such images: whole quads of pixels at aligned addresses, m alone in the model's output.
template <int C>
bool channels_fit(const Step& s, std::initializer_list<const void*> operands) {
  if (!(s.last & kModelLast) || s.pixels * C != s.elements || s.model_stride != s.elements || s.pixels % 4)
    return false;
  for (const void* address : operands)
    if (reinterpret_cast<uintptr_t>(address) % 16) return false;
  return true;
}

// As many chains a block as fit, four pixels of every channel a thread.
inline Plan plan_pixels(int64_t chains, int64_t pixels) {
  const unsigned across = static_cast<unsigned>(std::min<int64_t>(pixels / 4, kThreads));
  const unsigned down = static_cast<unsigned>(std::min<int64_t>(kThreads / across, chains));
  return plan(chains, pixels, dim3(across, down), across * 4);
}

}  // namespace ulam::cuda
