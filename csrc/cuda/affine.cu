// out = a x + b m, one pair of coefficients a chain; the term of a zero coefficient is not read.
#include "launch.h"

namespace ulam::cuda {

template <class Layout, class X, class M, class O>
ULAM_DEVICE void affine_chain(const Affine& s, int64_t b, uint32_t width, uint32_t span) {
  using V = Lanes<Layout::lanes>;
  const X x(s.x_type, width);
  const M m(s.m_type, width);
  const O out(s.out_type, width);
  const int64_t start = b * s.elements;
  const char* const x_chain = static_cast<const char*>(s.x) + x.bytes(start);
  const char* const m_chain = static_cast<const char*>(s.m) + m.bytes(start);
  char* const out_chain = static_cast<char*>(s.out) + out.bytes(start);
  const float factor_x = __ldg(s.a + b), factor_m = __ldg(s.b + b);
  const bool reads_x = factor_x != 0.0f, reads_m = factor_m != 0.0f;
  const uint32_t elements = static_cast<uint32_t>(s.elements);
  const uint32_t first = blockIdx.y * span, end = first + min(span, elements - first);
#pragma unroll 1
  for (uint32_t i = first + Layout::first(); i < end; i += Layout::step()) {
    const uint32_t left = end - i;
    auto x_raw = Raw<Layout::lanes>::unread(), m_raw = Raw<Layout::lanes>::unread();
    if (reads_x) x_raw = x.load(x_chain, i, left);
    if (reads_m) m_raw = m.load(m_chain, i, left);
    typename V::f t = V::set(reads_m ? -0.0f : 0.0f);
    if (reads_x) t = V::mul(V::set(factor_x), x.widen(x_raw));
    if (reads_m) t = V::fma(V::set(factor_m), m.widen(m_raw), t);
    out.store(out_chain, i, left, out.narrow(t));
  }
}

template <class X, class M, class O>
__global__ void __launch_bounds__(kThreads) affine_vectors(const Affine s, uint32_t span) {
  using Layout = Vectors<X::bytes + M::bytes + O::bytes == 6 ? 8 : 4>;
  affine_chain<Layout, typename Layout::template Known<X>, typename Layout::template Known<M>,
               typename Layout::template Known<O>>(s, blockIdx.x, 0, span);
}

__global__ void __launch_bounds__(kThreads) affine_quads(const Affine s, uint32_t span, uint32_t width) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (b < s.chains) affine_chain<Quads, Quads::Any, Quads::Any, Quads::Any>(s, b, width, span);
}

namespace {

cudaError_t launch_affine(const Affine& s, void* stream) {
  const Operand x{s.x, s.x_type}, m{s.m, s.m_type}, out{s.out, s.out_type};
  const bool narrow = s.x_type != kFloat32 && s.m_type != kFloat32 && s.out_type != kFloat32;
  if (vectors_fit(s.elements, narrow ? 8 : 4, {x, m, out})) {
    const Plan plan = plan_vectors(s.chains, s.elements);
    const auto go = [&](auto kernel) { return launch(kernel, plan, stream, s, plan.span); };
    const auto are = [&](DType x, DType m, DType out) { return s.x_type == x && s.m_type == m && s.out_type == out; };
    if (are(kFloat32, kFloat32, kFloat32)) return go(affine_vectors<Float32, Float32, Float32>);
    if (are(kFloat32, kBFloat16, kFloat32)) return go(affine_vectors<Float32, BFloat16, Float32>);
    if (are(kFloat32, kFloat16, kFloat32)) return go(affine_vectors<Float32, Float16, Float32>);
    if (are(kBFloat16, kBFloat16, kBFloat16)) return go(affine_vectors<BFloat16, BFloat16, BFloat16>);
    if (are(kFloat16, kFloat16, kFloat16)) return go(affine_vectors<Float16, Float16, Float16>);
  }
  const Plan plan = plan_quads(s.chains, s.elements);
  return launch(affine_quads, plan, stream, s, plan.span, access_width(s.elements, {x, m, out}));
}

}  // namespace

const char* affine(const Affine& s, void* stream) {
  if (s.chains == 0 || s.elements == 0) return nullptr;
  const cudaError_t error = launch_affine(s, stream);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "affine: could not launch on %lld chains of %lld elements", static_cast<long long>(s.chains),
                 static_cast<long long>(s.elements));
}

}  // namespace ulam::cuda
