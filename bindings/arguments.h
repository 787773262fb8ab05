// How the operations' arguments come from Python: integers for sizes, addresses and dtypes, then one argument of the
// backend's own (the CPU's thread count, a CUDA stream). The order is that of kernels/ulam_kernels/native/rows.py.
#pragma once

#include <cstdint>

#include "ulam/operations.h"

namespace ulam {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// What a row may read.
inline Step row_arguments(int64_t chains, int64_t elements, int registers, uintptr_t state, int state_type,
                          uintptr_t coef, uintptr_t flags, int64_t rows, uintptr_t row, uintptr_t model,
                          uintptr_t uncond, int model_type, int64_t model_stride, uintptr_t guidance, uintptr_t seed,
                          uintptr_t chain, uintptr_t draw, uintptr_t noise) {
  Step s{};
  s.chains = chains;
  s.elements = elements;
  s.registers = registers;
  s.state = pointer<void>(state);
  s.state_type = static_cast<DType>(state_type);
  s.coef = pointer<const float>(coef);
  s.flags = pointer<const int32_t>(flags);
  s.rows = rows;
  s.row = pointer<const int64_t>(row);
  s.model = pointer<const void>(model);
  s.uncond = pointer<const void>(uncond);
  s.model_type = static_cast<DType>(model_type);
  s.model_stride = model_stride;
  s.guidance = pointer<const float>(guidance);
  s.seed = pointer<const int64_t>(seed);
  s.chain = pointer<const int64_t>(chain);
  s.draw = pointer<const int64_t>(draw);
  s.noise = pointer<const float>(noise);
  s.source = s.state;
  return s;
}

template <class Own, class Run>
auto function_of(const Step*, Run run) {
  return [run](int64_t chains, int64_t elements, int registers, uintptr_t state, int state_type, uintptr_t coef,
               uintptr_t flags, int64_t rows, uintptr_t row, uintptr_t model, uintptr_t uncond, int model_type,
               int64_t model_stride, uintptr_t guidance, uintptr_t seed, uintptr_t chain, uintptr_t draw,
               uintptr_t noise, uintptr_t net_in, int net_type, uintptr_t scales, uintptr_t source, int64_t pixels,
               int last, uintptr_t squares, Own own) {
    Step s = row_arguments(chains, elements, registers, state, state_type, coef, flags, rows, row, model, uncond,
                           model_type, model_stride, guidance, seed, chain, draw, noise);
    s.net_in = pointer<void>(net_in);
    s.net_type = static_cast<DType>(net_type);
    s.scales = pointer<const float>(scales);
    if (source) s.source = pointer<const void>(source);
    s.pixels = pixels;
    s.last = last;
    s.squares = pointer<int64_t>(squares);
    return run(s, own);
  };
}

template <class Own, class Run>
auto function_of(const Reduce*, Run run) {
  return [run](int64_t chains, int64_t elements, int registers, uintptr_t state, int state_type, uintptr_t coef,
               uintptr_t flags, int64_t rows, uintptr_t row, uintptr_t model, uintptr_t uncond, int model_type,
               int64_t model_stride, uintptr_t guidance, uintptr_t seed, uintptr_t chain, uintptr_t draw,
               uintptr_t noise, uintptr_t out, Own own) {
    const Step step = row_arguments(chains, elements, registers, state, state_type, coef, flags, rows, row, model,
                                    uncond, model_type, model_stride, guidance, seed, chain, draw, noise);
    run(Reduce{step, pointer<float>(out)}, own);
  };
}

template <class Own, class Run>
auto function_of(const Blend*, Run run) {
  return [run](int64_t chains, int64_t elements, uintptr_t state, int state_type, uintptr_t known, uintptr_t mask,
               uintptr_t a, uintptr_t b, uintptr_t seed, uintptr_t chain, uintptr_t draw, uintptr_t noise,
               uintptr_t net_in, int net_type, uintptr_t c_next, uintptr_t row, int64_t rows, int64_t stage, Own own) {
    Blend s;
    s.chains = chains;
    s.elements = elements;
    s.state = pointer<void>(state);
    s.state_type = static_cast<DType>(state_type);
    s.known = pointer<const float>(known);
    s.mask = pointer<const float>(mask);
    s.a = pointer<const float>(a);
    s.b = pointer<const float>(b);
    s.seed = pointer<const int64_t>(seed);
    s.chain = pointer<const int64_t>(chain);
    s.draw = pointer<const int64_t>(draw);
    s.noise = pointer<const float>(noise);
    s.net_in = pointer<void>(net_in);
    s.net_type = static_cast<DType>(net_type);
    s.c_next = pointer<const float>(c_next);
    s.row = pointer<const int64_t>(row);
    s.rows = rows;
    s.stage = stage;
    run(s, own);
  };
}

template <class Own, class Run>
auto function_of(const Fill*, Run run) {
  return [run](int64_t chains, int64_t elements, int64_t offset, uintptr_t out, int type, uintptr_t seed,
               uintptr_t chain, uintptr_t draw, uint32_t tag, float scale, Own own) {
    Fill s;
    s.chains = chains;
    s.elements = elements;
    s.offset = offset;
    s.out = pointer<void>(out);
    s.type = static_cast<DType>(type);
    s.seed = pointer<const int64_t>(seed);
    s.chain = pointer<const int64_t>(chain);
    s.draw = pointer<const int64_t>(draw);
    s.tag = tag;
    s.scale = scale;
    run(s, own);
  };
}

template <class Own, class Run>
auto function_of(const Affine*, Run run) {
  return [run](int64_t chains, int64_t elements, uintptr_t x, int x_type, uintptr_t m, int m_type, uintptr_t out,
               int out_type, uintptr_t a, uintptr_t b, Own own) {
    Affine s;
    s.chains = chains;
    s.elements = elements;
    s.x = pointer<const void>(x);
    s.m = pointer<const void>(m);
    s.out = pointer<void>(out);
    s.x_type = static_cast<DType>(x_type);
    s.m_type = static_cast<DType>(m_type);
    s.out_type = static_cast<DType>(out_type);
    s.a = pointer<const float>(a);
    s.b = pointer<const float>(b);
    run(s, own);
  };
}

template <class Own, class Run>
auto function_of(const Moments*, Run run) {
  return [run](int64_t chains, int64_t elements, uintptr_t x, uintptr_t y, uintptr_t out, Own own) {
    run(Moments{chains, elements, pointer<const float>(x), pointer<const float>(y), pointer<double>(out)}, own);
  };
}

template <class Own, class Run>
auto function_of(const LookUp*, Run run) {
  return [run](int64_t chains, int64_t rows, uintptr_t times, bool whole, uintptr_t row, uintptr_t out,
               uintptr_t guidance, uintptr_t interval, uintptr_t weight, Own own) {
    LookUp s;
    s.chains = chains;
    s.rows = rows;
    s.times = pointer<const void>(times);
    s.whole = whole;
    s.row = pointer<const int64_t>(row);
    s.out = pointer<void>(out);
    s.guidance = pointer<const float>(guidance);
    s.interval = pointer<const float>(interval);
    s.weight = pointer<float>(weight);
    run(s, own);
  };
}

template <class Own, class Run>
auto function_of(const Advance*, Run run) {
  return [run](int64_t chains, int64_t elements, uintptr_t cursor, uintptr_t now, uintptr_t model, uintptr_t uncond,
               int type, int64_t model_stride, int64_t uncond_stride, uintptr_t guidance, Own own) {
    Advance s;
    s.chains = chains;
    s.elements = elements;
    s.cursor = pointer<int64_t>(cursor);
    s.now = pointer<int64_t>(now);
    s.model = pointer<const void>(model);
    s.uncond = pointer<const void>(uncond);
    s.type = static_cast<DType>(type);
    s.model_stride = model_stride;
    s.uncond_stride = uncond_stride;
    s.guidance = pointer<const float>(guidance);
    run(s, own);
  };
}

}  // namespace ulam
