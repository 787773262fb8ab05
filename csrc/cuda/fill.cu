// Noise on its own: out[b, i] = scale * normal number offset + i of (seed, chain, draw, tag).
#include "launch.h"

namespace ulam::cuda {

ULAM_DEVICE Stream stream_of(const Fill& s, int64_t b) {
  return make_stream(static_cast<uint64_t>(__ldg(s.seed + b)), static_cast<uint64_t>(__ldg(s.chain + b)),
                     static_cast<uint64_t>(__ldg(s.draw + b)), s.tag);
}

template <class Layout>
ULAM_DEVICE typename Lanes<Layout::lanes>::f scaled_normals(const Fill& s, const Stream& stream, uint32_t e) {
  using V = Lanes<Layout::lanes>;
  return V::mul(V::set(s.scale), normals<Layout>(stream, e));
}

template <class T>
__global__ void __launch_bounds__(kThreads) fill_vectors(const Fill s, uint32_t span) {
  using Layout = Vectors<T::bytes == 4 ? 4 : 8>;
  const int64_t b = blockIdx.x;
  const Stream stream = stream_of(s, b);
  const typename Layout::template Known<T> out(s.type, 0);
  char* const chain = static_cast<char*>(s.out) + out.bytes(b * s.elements);
  const uint32_t elements = static_cast<uint32_t>(s.elements), offset = static_cast<uint32_t>(s.offset);
  const uint32_t first = blockIdx.y * span, end = first + min(span, elements - first);
#pragma unroll 1
  for (uint32_t i = first + Layout::first(); i < end; i += Layout::step())
    out.store(chain, i, end - i, out.narrow(scaled_normals<Layout>(s, stream, offset + i)));
}

// Quads of the noise itself: where offset is not a multiple of 4, the first one is shared with whoever has the elements
// before it.
__global__ void __launch_bounds__(kThreads) fill_quads(const Fill s, uint32_t span, uint32_t width) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (b >= s.chains) return;
  const Stream stream = stream_of(s, b);
  const Quads::Any out(s.type, width);
  char* const chain = static_cast<char*>(s.out) + out.bytes(b * s.elements);
  const uint32_t skipped = static_cast<uint32_t>(s.offset) & 3, begin = static_cast<uint32_t>(s.offset) - skipped;
  const uint32_t elements = skipped + static_cast<uint32_t>(s.elements);
  const uint32_t first = blockIdx.y * span, end = first + min(span, elements - first);
#pragma unroll 1
  for (uint32_t i = first + Quads::first(); i < end; i += Quads::step()) {
    Lanes<4>::f z = scaled_normals<Quads>(s, stream, begin + i);
    uint32_t at = i - skipped, left = end - i;
    if (i < skipped) {  // the shared quad: drop its first elements
      at = 0;
      left -= skipped;
      for (uint32_t k = 0; k < skipped; ++k) z = {{z.x[1], z.x[2], z.x[3], z.x[3]}};
      left = min(left, 4 - skipped);
    }
    out.store(chain, at, left, out.narrow(z));
  }
}

// Chains of which a block takes all it has at once: nothing is shared and nothing follows. Pairs are for chains that
// have no more elements.
template <class Group>
__global__ void __launch_bounds__(kShortThreads) fill_short(const Fill s, uint32_t width) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const uint32_t elements = static_cast<uint32_t>(s.elements), i = Group::lanes == 2 ? 0 : Group::first();
  if (b >= s.chains || i >= elements) return;
  const typename Group::Any out(s.type, width);
  char* const chain = static_cast<char*>(s.out) + out.bytes(b * elements);
  const uint32_t offset = static_cast<uint32_t>(s.offset);
  out.store(chain, i, elements - i, out.narrow(scaled_normals<Group>(s, stream_of(s, b), offset + i)));
}

namespace {

cudaError_t launch_fill(const Fill& s, void* stream) {
  const Operand out{s.out, s.type};
  if (s.offset % 4 == 0 && vectors_fit(s.elements, s.type == kFloat32 ? 4 : 8, {out})) {
    const Plan plan = plan_vectors(s.chains, s.elements);
    const auto go = [&](auto kernel) { return launch(kernel, plan, stream, s, plan.span); };
    if (s.type == kFloat32) return go(fill_vectors<Float32>);
    return s.type == kBFloat16 ? go(fill_vectors<BFloat16>) : go(fill_vectors<Float16>);
  }
  const uint32_t width = s.offset % 4 ? 1 : access_width(s.elements, {out});
  const auto go_short = [&](auto kernel, int lanes) {
    return launch(kernel, plan_short(s.chains, s.elements, lanes), stream, s, width);
  };
  if (s.offset % 4 == 0 && s.elements <= 2) return go_short(fill_short<Pairs>, 2);
  if (s.offset % 4 == 0 && s.elements <= kThreads) return go_short(fill_short<Quads>, 4);
  const Plan plan = plan_quads(s.chains, s.elements, s.offset % 4);
  return launch(fill_quads, plan, stream, s, plan.span, width);
}

}  // namespace

const char* fill_normal(const Fill& s, void* stream) {
  if (s.chains == 0 || s.elements == 0) return nullptr;
  const cudaError_t error = launch_fill(s, stream);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "fill_normal: could not launch on %lld chains of %lld elements",
                 static_cast<long long>(s.chains), static_cast<long long>(s.elements));
}

}  // namespace ulam::cuda
