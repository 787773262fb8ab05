// What one thread holds: a few elements of one chain in registers, and how they come from memory and go back.
#pragma once

#include "kernels.h"
#include "ulam/noise.h"

#define ULAM_DEVICE __device__ __forceinline__

namespace ulam::cuda {

// N elements at once, with the members that the formulas of ulam/ ask for. A branch on the row's coefficients, which
// are the same for a whole chain, is so paid once for N elements.
template <int N>
struct Lanes {
  static constexpr int width = N;
  struct f {
    float x[N];
  };
  struct u {
    uint32_t x[N];
  };

  template <class Result, class Function>
  static ULAM_DEVICE Result each(const Function& function) {
    Result r;
    ULAM_UNROLL
    for (int k = 0; k < N; ++k) r.x[k] = function(k);
    return r;
  }
  static ULAM_DEVICE f set(float a) {
    return each<f>([&](int) { return a; });
  }
  static ULAM_DEVICE u set_u(uint32_t a) {
    return each<u>([&](int) { return a; });
  }
  static ULAM_DEVICE f fma(f a, f b, f c) {
    return each<f>([&](int k) { return Scalar::fma(a.x[k], b.x[k], c.x[k]); });
  }
  static ULAM_DEVICE f mul(f a, f b) {
    return each<f>([&](int k) { return Scalar::mul(a.x[k], b.x[k]); });
  }
  static ULAM_DEVICE f sub(f a, f b) {
    return each<f>([&](int k) { return Scalar::sub(a.x[k], b.x[k]); });
  }
  static ULAM_DEVICE u bits(f a) {
    return each<u>([&](int k) { return Scalar::bits(a.x[k]); });
  }
  static ULAM_DEVICE f as_float(u a) {
    return each<f>([&](int k) { return Scalar::as_float(a.x[k]); });
  }
  static ULAM_DEVICE u add_u(u a, u b) {
    return each<u>([&](int k) { return a.x[k] + b.x[k]; });
  }
  static ULAM_DEVICE u sub_u(u a, u b) {
    return each<u>([&](int k) { return a.x[k] - b.x[k]; });
  }
  template <int n>
  static ULAM_DEVICE u shl(u a) {
    return each<u>([&](int k) { return a.x[k] << n; });
  }
  static ULAM_DEVICE f clip(f a, f lo, f hi) {
    return each<f>([&](int k) { return Scalar::clip(a.x[k], lo.x[k], hi.x[k]); });
  }
  static ULAM_DEVICE f where_equal(f a, float b, f then, f otherwise) {
    return each<f>([&](int k) { return Scalar::where_equal(a.x[k], b, then.x[k], otherwise.x[k]); });
  }
  static ULAM_DEVICE f nan_or(f a, f b) {
    return each<f>([&](int k) { return Scalar::nan_or(a.x[k], b.x[k]); });
  }

  // What is in a register that no one reads. Zeros would cost an instruction each.
  static ULAM_DEVICE f unread() {
    return each<f>([&](int) {
      float x;
      asm("" : "=f"(x));
      return x;
    });
  }
};

// Element types as they lie in memory. Two of 16 bits share a word, the earlier one in its lower half.
struct Float32 {
  static constexpr int bytes = 4;
};

struct BFloat16 {
  static constexpr int bytes = 2;
  static ULAM_DEVICE void widen(uint32_t pair, float& low, float& high) {
    low = Scalar::as_float(pair << 16);
    high = Scalar::as_float(pair & 0xffff0000u);
  }
  static ULAM_DEVICE uint32_t narrow(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
};

struct Float16 {
  static constexpr int bytes = 2;
  static ULAM_DEVICE void widen(uint32_t pair, float& low, float& high) {
    asm("{.reg .f16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b;}"
        : "=f"(low), "=f"(high)
        : "r"(pair));
  }
  static ULAM_DEVICE uint32_t narrow(float low, float high) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
};

// N elements as they were loaded. They are widened where they are used, so that making the noise hides the load.
template <int N>
struct Raw {
  uint32_t w[N];  // N / 2 of them for 16-bit types

  static ULAM_DEVICE Raw unread() {
    Raw raw;
    ULAM_UNROLL
    for (int k = 0; k < N; ++k) asm("" : "=r"(raw.w[k]));
    return raw;
  }
};

template <class T, int N>
ULAM_DEVICE typename Lanes<N>::f widen(const Raw<N>& raw) {
  typename Lanes<N>::f v;
  if constexpr (T::bytes == 4) {
    ULAM_UNROLL
    for (int k = 0; k < N; ++k) v.x[k] = Scalar::as_float(raw.w[k]);
  } else {
    ULAM_UNROLL
    for (int k = 0; k < N; k += 2) T::widen(raw.w[k / 2], v.x[k], v.x[k + 1]);
  }
  return v;
}

template <class T, int N>
ULAM_DEVICE Raw<N> narrow(const typename Lanes<N>::f& v) {
  Raw<N> raw;
  if constexpr (T::bytes == 4) {
    ULAM_UNROLL
    for (int k = 0; k < N; ++k) raw.w[k] = Scalar::bits(v.x[k]);
  } else {
    ULAM_UNROLL
    for (int k = 0; k < N; k += 2) raw.w[k / 2] = T::narrow(v.x[k], v.x[k + 1]);
  }
  return raw;
}

// `count` words (1, 2 or a multiple of 4) at an address aligned to all of them, or to 16 bytes.
template <int count>
ULAM_DEVICE void load_words(const void* from, uint32_t* w) {
  if constexpr (count == 1) {
    w[0] = *static_cast<const uint32_t*>(from);
  } else if constexpr (count == 2) {
    const uint2 v = *static_cast<const uint2*>(from);
    w[0] = v.x, w[1] = v.y;
  } else {
    ULAM_UNROLL
    for (int k = 0; k < count; k += 4) {
      const uint4 v = static_cast<const uint4*>(from)[k / 4];
      w[k] = v.x, w[k + 1] = v.y, w[k + 2] = v.z, w[k + 3] = v.w;
    }
  }
}

template <int count>
ULAM_DEVICE void store_words(void* to, const uint32_t* w) {
  if constexpr (count == 1) {
    *static_cast<uint32_t*>(to) = w[0];
  } else if constexpr (count == 2) {
    *static_cast<uint2*>(to) = make_uint2(w[0], w[1]);
  } else {
    ULAM_UNROLL
    for (int k = 0; k < count; k += 4) static_cast<uint4*>(to)[k / 4] = make_uint4(w[k], w[k + 1], w[k + 2], w[k + 3]);
  }
}

// `count` elements a thread at known types and aligned addresses. They lie in runs of `each` elements, a warp's runs
// side by side: run v of a thread is 32 * each elements after run v - 1, so every access of a warp is one contiguous
// piece. `i` is the thread's first element and `left` counts from there to the end of the chain.
template <int each, int count = 8>
struct Vectors {
  static constexpr int lanes = count, run = each;
  static constexpr uint32_t warp_elements = 32 * lanes;

  static ULAM_DEVICE uint32_t first() { return threadIdx.x / 32 * warp_elements + threadIdx.x % 32 * each; }
  static ULAM_DEVICE uint32_t step() { return blockDim.x * lanes; }
  // Element k of the thread, counted from its first.
  static ULAM_DEVICE constexpr uint32_t element(int k) { return k / each * 32 * each + k % each; }

  template <class T>
  struct Known {
    ULAM_DEVICE Known(DType, uint32_t) {}
    static constexpr int words = each * T::bytes / 4;
    static ULAM_DEVICE constexpr int64_t bytes(int64_t elements) { return elements * T::bytes; }

    ULAM_DEVICE Raw<lanes> load(const char* chain, uint32_t i, uint32_t left) const {
      Raw<lanes> raw;
      ULAM_UNROLL
      for (int v = 0; v < lanes / each; ++v)
        if (v == 0 || element(v * each) < left)
          load_words<words>(chain + (static_cast<uint64_t>(i) + element(v * each)) * T::bytes, raw.w + v * words);
      return raw;
    }
    ULAM_DEVICE void store(char* chain, uint32_t i, uint32_t left, const Raw<lanes>& raw) const {
      ULAM_UNROLL
      for (int v = 0; v < lanes / each; ++v)
        if (v == 0 || element(v * each) < left)
          store_words<words>(chain + (static_cast<uint64_t>(i) + element(v * each)) * T::bytes, raw.w + v * words);
    }
    static ULAM_DEVICE typename Lanes<lanes>::f widen(const Raw<lanes>& raw) { return cuda::widen<T, lanes>(raw); }
    static ULAM_DEVICE Raw<lanes> narrow(const typename Lanes<lanes>::f& v) { return cuda::narrow<T, lanes>(v); }
  };

  // Narrows and stores at a type known only when it runs.
  static ULAM_DEVICE void store(DType type, uint32_t, char* chains, int64_t start, uint32_t i, uint32_t left,
                                const typename Lanes<lanes>::f& v) {
    if (type == kFloat32)
      store_known<Float32>(chains, start, i, left, v);
    else if (type == kBFloat16)
      store_known<BFloat16>(chains, start, i, left, v);
    else
      store_known<Float16>(chains, start, i, left, v);
  }
  template <class T>
  static ULAM_DEVICE void store_known(char* chains, int64_t start, uint32_t i, uint32_t left,
                                      const typename Lanes<lanes>::f& v) {
    const Known<T> operand(kFloat32, 0);
    operand.store(chains + operand.bytes(start), i, left, operand.narrow(v));
  }
};

// N elements a thread, four or two, of a type known only when it runs, at addresses aligned to `width` elements (4, 2
// or 1; a width of 4 is one of 2 for two elements).
template <int N>
struct Group {
  static constexpr int lanes = N, run = N;

  static ULAM_DEVICE uint32_t first() { return threadIdx.x * N; }
  static ULAM_DEVICE uint32_t step() { return blockDim.x * N; }
  static ULAM_DEVICE constexpr uint32_t element(int k) { return k; }

  struct Any {
    DType type;
    uint32_t width;
    ULAM_DEVICE Any(DType type, uint32_t width) : type(type), width(width) {}
    ULAM_DEVICE int64_t bytes(int64_t elements) const { return elements << (type == kFloat32 ? 2 : 1); }

    ULAM_DEVICE Raw<N> load(const char* chain, uint32_t i, uint32_t left) const {
      Raw<N> raw;
      const char* from = chain + bytes(i);
      if (type == kFloat32)
        load_parts<N>(from, left, raw.w);
      else
        load_parts<N / 2>(from, left, raw.w);
      return raw;
    }
    ULAM_DEVICE void store(char* chain, uint32_t i, uint32_t left, const Raw<N>& raw) const {
      char* to = chain + bytes(i);
      if (type == kFloat32)
        store_parts<N>(to, left, raw.w);
      else
        store_parts<N / 2>(to, left, raw.w);
    }
    ULAM_DEVICE typename Lanes<N>::f widen(const Raw<N>& raw) const {
      if (type == kFloat32) return cuda::widen<Float32, N>(raw);
      return type == kBFloat16 ? cuda::widen<BFloat16, N>(raw) : cuda::widen<Float16, N>(raw);
    }
    ULAM_DEVICE Raw<N> narrow(const typename Lanes<N>::f& v) const {
      if (type == kFloat32) return cuda::narrow<Float32, N>(v);
      return type == kBFloat16 ? cuda::narrow<BFloat16, N>(v) : cuda::narrow<Float16, N>(v);
    }

   private:
    // `words` is what N elements take.
    template <int words>
    ULAM_DEVICE void load_parts(const char* from, uint32_t left, uint32_t* w) const {
      if (width >= N) {
        load_words<words>(from, w);
      } else if (N == 4 && width == 2) {
        load_words<words / 2>(from, w);
        if (left > 2) load_words<words / 2>(from + 2 * words, w + words / 2);
      } else {
        ULAM_UNROLL
        for (int k = 0; k < N; ++k) {
          if (k > 0 && k >= left) continue;
          if constexpr (words == N) {
            w[k] = reinterpret_cast<const uint32_t*>(from)[k];
          } else {
            const uint32_t half = reinterpret_cast<const uint16_t*>(from)[k];
            w[k / 2] = k % 2 ? w[k / 2] | half << 16 : half;
          }
        }
      }
    }
    template <int words>
    ULAM_DEVICE void store_parts(char* to, uint32_t left, const uint32_t* w) const {
      if (width >= N) {
        store_words<words>(to, w);
      } else if (N == 4 && width == 2) {
        store_words<words / 2>(to, w);
        if (left > 2) store_words<words / 2>(to + 2 * words, w + words / 2);
      } else {
        ULAM_UNROLL
        for (int k = 0; k < N; ++k) {
          if (k > 0 && k >= left) continue;
          if constexpr (words == N)
            reinterpret_cast<uint32_t*>(to)[k] = w[k];
          else
            reinterpret_cast<uint16_t*>(to)[k] = static_cast<uint16_t>(w[k / 2] >> (k % 2 * 16));
        }
      }
    }
  };

  static ULAM_DEVICE void store(DType type, uint32_t width, char* chains, int64_t start, uint32_t i, uint32_t left,
                                const typename Lanes<N>::f& v) {
    const Any operand(type, width);
    operand.store(chains + operand.bytes(start), i, left, operand.narrow(v));
  }
};
using Quads = Group<4>;
using Pairs = Group<2>;

// The normals of the thread's elements; `i`, the first of them, is a multiple of 4. Of two elements the other half of
// the noise's block is not made.
template <class Layout>
ULAM_DEVICE typename Lanes<Layout::lanes>::f normals(const Stream& stream, uint32_t i) {
  typename Lanes<Layout::lanes>::f z;
  ULAM_UNROLL
  for (int k = 0; k < Layout::lanes; k += 4) {
    uint32_t w[4];
    philox_words<Scalar>(stream, stream.tag | ((i + Layout::element(k)) >> 2), w);
    if constexpr (Layout::lanes == 2)
      box_muller_pair<Scalar>(w, z.x);
    else
      box_muller<Scalar>(w, z.x + k);
  }
  return z;
}

}  // namespace ulam::cuda
