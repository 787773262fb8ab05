// Mask blending with a known image: r_0 becomes a known + b z where the mask is 1. A row outside the tables makes its
// chain NaN.
#include "launch.h"
#include "ulam/reduce.h"
#include "ulam/row.h"

namespace ulam::cuda {

__global__ void __launch_bounds__(kThreads) blend_quads(const Blend s, uint32_t span, uint32_t width) {
  using V = Lanes<4>;
  const int64_t chain = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (chain >= s.chains) return;
  const int64_t at = s.row ? __ldg(s.row + chain) : chain;
  const bool is_outside = s.row && static_cast<uint64_t>(at) >= static_cast<uint64_t>(s.rows);
  const float a = is_outside ? not_a_number() : __ldg(s.a + at), b = is_outside ? 0.0f : __ldg(s.b + at);
  if (a == 0.0f && b == 0.0f) return;
  const Quads::Any state(s.state_type, width), fp32(kFloat32, width);
  const int64_t start = chain * s.elements;
  const auto of_chain = [&](const float* all) { return reinterpret_cast<const char*>(all + start); };
  char* const r0 = static_cast<char*>(s.state) + state.bytes(start);
  const bool generates = b != 0.0f && !s.noise;
  Stream stream{};
  if (generates)
    stream = make_stream(static_cast<uint64_t>(__ldg(s.seed + chain)), static_cast<uint64_t>(__ldg(s.chain + chain)),
                         static_cast<uint64_t>(__ldg(s.draw + chain)) + static_cast<uint64_t>(s.stage), 0);
  const uint32_t elements = static_cast<uint32_t>(s.elements);
  const uint32_t first = blockIdx.y * span, end = first + min(span, elements - first);
#pragma unroll 1
  for (uint32_t i = first + Quads::first(); i < end; i += Quads::step()) {
    const uint32_t left = end - i;
    const Raw<4> old = state.load(r0, i, left), mask = fp32.load(of_chain(s.mask), i, left);
    V::f y = V::set(-0.0f);
    if (a != 0.0f) y = V::fma(V::set(a), fp32.widen(fp32.load(of_chain(s.known), i, left)), y);
    if (b != 0.0f) {
      const V::f z = generates ? normals<Quads>(stream, i) : fp32.widen(fp32.load(of_chain(s.noise), i, left));
      y = V::fma(V::set(b), z, y);
    }
    const Raw<4> x = state.narrow(is_outside ? y : blended<V>(fp32.widen(mask), y, state.widen(old)));
    state.store(r0, i, left, x);
    if (s.net_in)
      Quads::store(s.net_type, width, static_cast<char*>(s.net_in), start, i, left,
                   V::mul(V::set(is_outside ? a : __ldg(s.c_next + at)), state.widen(x)));
  }
}

const char* blend(const Blend& s, void* stream) {
  if (s.chains == 0 || s.elements == 0) return nullptr;
  const Operand state{s.state, s.state_type}, known{s.known, kFloat32}, mask{s.mask, kFloat32};
  const Operand noise{s.noise, kFloat32}, net{s.net_in, s.net_type};
  const Plan plan = plan_quads(s.chains, s.elements);
  const uint32_t width = access_width(s.elements, {state, known, mask, noise, net});
  const cudaError_t error = launch(blend_quads, plan, stream, s, plan.span, width);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "blend: could not launch on %lld chains of %lld elements", static_cast<long long>(s.chains),
                 static_cast<long long>(s.elements));
}

}  // namespace ulam::cuda
