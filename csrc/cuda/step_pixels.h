// The fused step where the model's output or the network's input has its channels innermost in memory.
#pragma once

#include "chain_step.h"
#include "channels.h"
#include "pixels.h"

namespace ulam::cuda {

// Elements looked up one by one: see pixels.h.
struct PixelTypes : AnyTypes<Quads> {
  using Model = Scattered;
  const Planes& p;
  const uint32_t channel;

  ULAM_DEVICE PixelTypes(uint32_t width, const Planes& p, uint32_t channel)
      : AnyTypes<Quads>{width}, p(p), channel(channel) {}
  ULAM_DEVICE Model model(const Step& s) const {
    return Model(s.model_type, p, s.last & kModelLast, p.model_channels, channel);
  }
  ULAM_DEVICE int64_t variance(const Step& s) const { return s.last & kModelLast ? p.channels : s.elements; }
  ULAM_DEVICE void store_net_in(const Step& s, int64_t start, uint32_t i, uint32_t left, const Lanes<4>::f& x) const {
    const Scattered net_in(s.net_type, p, s.last & kNetLast, p.channels, channel);
    net_in.store(static_cast<char*>(s.net_in) + net_in.bytes(start), i, left, x);
  }
};

// Of a chain's elements only the pixels are counted: see channels.h.
template <class S, class M, int C>
struct ChannelTypes {
  using Layout = Channels<C>;
  using State = typename Layout::template Planar<S>;
  using Model = typename Layout::template Interleaved<M>;
  using Noise = typename Layout::template Planar<Float32>;
  const uint32_t pixels;

  ULAM_DEVICE State state(const Step&) const { return {pixels}; }
  ULAM_DEVICE Model model(const Step&) const { return {}; }
  ULAM_DEVICE Noise noise() const { return {pixels}; }
  ULAM_DEVICE int64_t variance(const Step&) const { return 0; }  // there is none
  ULAM_DEVICE uint32_t extent(const Step&) const { return pixels; }
  ULAM_DEVICE typename Layout::V::f normals(const Stream& stream, uint32_t i) const {
    return Layout::normals(stream, i, pixels);
  }
  ULAM_DEVICE void store_net_in(const Step& s, int64_t start, uint32_t i, uint32_t,
                                const typename Layout::V::f& x) const {
    Layout::store(s.net_type, s.last & kNetLast, pixels, static_cast<char*>(s.net_in), start, i, x);
  }
};

template <int R, class... Sum>
ULAM_DEVICE void step_planes(const Step& s, uint32_t missing, uint32_t span, uint32_t width, const Planes& p,
                             Sum&... sum) {
  const int64_t b = chain_of_thread();
  if (b >= s.chains) return;
  float c[row_width(R)];
  const uint32_t flags = load_row<R>(s, b, missing, c);
  if (!(flags & kWrites)) return;
  const Row<R> row(c, flags);
  const uint32_t quad = threadIdx.x / p.planes, channel = threadIdx.x - quad * p.planes;
  ChainStep<PixelTypes, R, SquaresOf<Sum...>> chain(s, row, b, PixelTypes(width, p, channel), guidance_weight(s, b),
                                                    sum...);
  if (chain.makes_noise()) chain.make_noise_of(Ids(s, b));
  const uint32_t first = blockIdx.y * span, end = first + min(span, p.plane - first), from = channel * p.plane;
#pragma unroll 1
  for (uint32_t i = first + quad * 4; i < end; i += blockDim.x / p.planes * 4) chain(from + i, end - i);
}

// With most registers the compiler must be told that it may use them: it keeps words in local memory otherwise.
template <int R, bool records>
__global__ void __launch_bounds__(kThreads, R < kMaxRegisters ? 0 : 1)
    step_pixels(const Step s, uint32_t missing, uint32_t span, uint32_t width, const Planes p) {
  if constexpr (records) {
    SquareSum sum;
    step_planes<R>(s, missing, span, width, p, sum);
    sum.add_chains(s, chain_of_thread());
  } else {
    step_planes<R>(s, missing, span, width, p);
  }
}

// With most elements and registers a thread the compiler must be told that it may use all the machine's registers: it
// keeps words in local memory otherwise.
template <class S, class M, int C, int R, bool records>
__global__ void __launch_bounds__(kThreads, records || C * R > 6 ? 1 : 0)
    step_channels(const Step s, uint32_t missing, uint32_t span) {
  using Types = ChannelTypes<S, M, C>;
  const int64_t b = chain_of_thread();
  if constexpr (records) {
    SquareSum sum;
    if (b < s.chains) step_chain<Types, R>(s, b, missing, span, {static_cast<uint32_t>(s.pixels)}, sum);
    sum.add_chains(s, b);
  } else {
    if (b < s.chains) step_chain<Types, R>(s, b, missing, span, {static_cast<uint32_t>(s.pixels)});
  }
}

// Images of C channels; false where their types have no kernel.
template <bool records, int C, int R>
bool launch_channels(const Step& s, uint32_t missing, void* stream, cudaError_t* error) {
  const Plan plan = plan_pixels(s.chains, s.pixels);
  const auto go = [&](auto kernel) {
    *error = launch(kernel, plan, stream, s, missing, plan.span);
    return true;
  };
  if (s.state_type == kFloat32 && s.model_type == kFloat32) return go(step_channels<Float32, Float32, C, R, records>);
  if (s.state_type == kFloat32 && s.model_type == kBFloat16) return go(step_channels<Float32, BFloat16, C, R, records>);
  if (s.state_type == kFloat32 && s.model_type == kFloat16) return go(step_channels<Float32, Float16, C, R, records>);
  if (s.state_type == kBFloat16 && s.model_type == kBFloat16)
    return go(step_channels<BFloat16, BFloat16, C, R, records>);
  if (s.state_type == kFloat16 && s.model_type == kFloat16) return go(step_channels<Float16, Float16, C, R, records>);
  return false;
}

template <bool records, int R>
cudaError_t launch_channels_last(const Step& s, uint32_t missing, void* stream) {
  const Operand state{s.state, s.state_type}, source{s.source, s.state_type}, noise{s.noise, kFloat32};
  if constexpr (R <= 2) {
    const std::initializer_list<const void*> operands = {s.state, s.source, s.model, s.uncond, s.noise, s.net_in};
    cudaError_t error = cudaSuccess;
    if (channels_fit<3>(s, operands) && launch_channels<records, 3, R>(s, missing, stream, &error)) return error;
    if (channels_fit<4>(s, operands) && launch_channels<records, 4, R>(s, missing, stream, &error)) return error;
  }
  const Planes planes(s);
  const Plan plan = planes.plan(s.chains);
  const uint32_t width = access_width(s.elements, {state, source, noise});
  return launch(step_pixels<R, records>, plan, stream, s, missing, plan.span, width, planes);
}

template <bool records>
cudaError_t launch_channels_last(const Step& s, uint32_t missing, void* stream) {
  return with_registers(s.registers,
                        [&](auto registers) { return launch_channels_last<records, registers>(s, missing, stream); });
}

}  // namespace ulam::cuda
