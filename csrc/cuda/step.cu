// The fused step: one row of the table a chain. See ulam/row.h for what a row does to an element.
//
// The kernels are compiled for the number of registers and, where all is aligned and chains are long, for the types of
// state and model. What a row does (noise, guidance, clip, learned variance) is decided while it runs, by branches that
// are the same for all elements of a chain.
#include "launch.h"
#include "ulam/row.h"

namespace ulam::cuda {

// A row of NaN, for rows that cannot be executed.
struct NanRow {
  uint32_t c[row_width(kMaxRegisters)];
  constexpr NanRow() : c() {
    for (uint32_t& x : c) x = 0x7fc00000u;
  }
};
static __device__ const NanRow kNanRow;

// The coefficients of chain b's row to `c`; its flags are returned. `missing` has the flags of what was not given.
template <int R>
ULAM_DEVICE uint32_t load_row(const Step& s, int64_t b, uint32_t missing, float c[row_width(R)]) {
  const int64_t index = __ldg(s.row + b);
  const bool inside = static_cast<uint64_t>(index) < static_cast<uint64_t>(s.rows);
  uint32_t flags = inside ? static_cast<uint32_t>(__ldg(s.flags + index)) : kWrites;
  const float* from = s.coef + index * row_width(R);
  if (!inside || (flags & missing)) {
    flags &= kWrites;
    from = reinterpret_cast<const float*>(kNanRow.c);
  }
  ULAM_UNROLL
  for (int k = 0; k < row_width(R); ++k) {
    const uint32_t needed = k < kLearnedSlope ? kUsesX0 : k < kNextScale ? kLearned : kWrites;
    c[k] = Lanes<1>::unread().x[0];
    if (flags & needed) c[k] = __ldg(from + k);
  }
  return flags;
}

// How a thread reaches its elements: types and alignment known when compiled, or when run.
template <class S, class M>
struct KnownTypes {
  using Layout = Vectors<S::bytes == 4 ? 4 : 8>;
  using State = typename Layout::template Known<S>;
  using Model = typename Layout::template Known<M>;
  using Noise = typename Layout::template Known<Float32>;
};
struct AnyTypes {
  using Layout = Quads;
  using State = Quads::Any;
  using Model = Quads::Any;
  using Noise = Quads::Any;
};

// Executes a row on elements of chain b. What the chain's elements share is derived once.
template <class Types, int R>
struct ChainStep {
  using Layout = typename Types::Layout;
  static constexpr int N = Layout::lanes;
  using V = Lanes<N>;
  using f = typename V::f;

  const Step& s;
  const Row<R>& row;
  const uint32_t width;
  const typename Types::State state;
  const typename Types::Model model;
  const typename Types::Noise noise;
  const int64_t b, start, register_bytes;  // `start` is the first element; the last leads from one register to the next
  char* r0;
  const char* source;
  const char *output, *other;  // the model output that is read, and the one that guidance mixes into it
  const char* given;           // noise
  float weight;
  bool mixes;
  Stream stream;

  ULAM_DEVICE ChainStep(const Step& s, const Row<R>& row, int64_t b, uint32_t width)
      : s(s),
        row(row),
        width(width),
        state(s.state_type, width),
        model(s.model_type, width),
        noise(kFloat32, width),
        b(b),
        start(b * s.elements),
        register_bytes(state.bytes(s.chains * s.elements)),
        r0(static_cast<char*>(s.state) + state.bytes(start)),
        source(static_cast<const char*>(s.source) + state.bytes(start)),
        weight(s.uncond ? __ldg(s.guidance + b) : 1.0f),
        mixes(weight != 0.0f && weight != 1.0f),
        stream{} {
    const int64_t skipped = model.bytes(b * s.model_stride);
    other = static_cast<const char*>(s.uncond) + skipped;
    output = weight != 0.0f ? static_cast<const char*>(s.model) + skipped : other;
    given = reinterpret_cast<const char*>(s.noise) + noise.bytes(start);
    if ((row.flags & kReadsNoise) && !s.noise)
      stream = make_stream(static_cast<uint64_t>(__ldg(s.seed + b)), static_cast<uint64_t>(__ldg(s.chain + b)),
                           static_cast<uint64_t>(__ldg(s.draw + b)), 0);
  }

  // A row that is not idle writes its only register.
  ULAM_DEVICE bool writes(int j) const { return R == 1 || (row.flags >> j & 1); }

  // The thread's elements from i on, of which `left` are in the chain. All is loaded before anything is stored.
  ULAM_DEVICE void operator()(uint32_t i, uint32_t left) const {
    Raw<N> m_raw = Raw<N>::unread(), other_raw = Raw<N>::unread(), old[R];
    if (row.flags & kReadsModel) {
      m_raw = model.load(output, i, left);
      if (mixes) other_raw = model.load(other, i, left);
    }
    ULAM_UNROLL
    for (int j = 0; j < R; ++j) {
      old[j] = Raw<N>::unread();
      if (row.reads >> j & 1) old[j] = state.load(j == 0 ? source : r0 + j * register_bytes, i, left);
    }
    const f z = row.flags & kReadsNoise ? scaled_noise(i, left) : V::unread();
    f m = model.widen(m_raw), x0 = V::unread(), r[R];
    if (mixes) m = guide<V>(m, model.widen(other_raw), weight);
    ULAM_UNROLL
    for (int j = 0; j < R; ++j) r[j] = state.widen(old[j]);
    if (row.flags & kUsesX0)
      x0 = row.flags & kReduced ? estimate_x0<V>(row.c, scales(), r[0], m) : estimate_x0<V>(row.c, r[0], m);
    ULAM_UNROLL
    for (int j = 0; j < R; ++j)
      if (writes(j)) old[j] = state.narrow(combine<V>(row, j, r, x0, m, z));
    ULAM_UNROLL
    for (int j = 0; j < R; ++j)
      if (writes(j)) state.store(r0 + j * register_bytes, i, left, old[j]);
    if (s.net_in) {
      if (!writes(0)) old[0] = state.load(source, i, left);
      const f x = V::mul(V::set(row.c[kNextScale]), state.widen(old[0]));
      Layout::store(s.net_type, width, static_cast<char*>(s.net_in), start, i, left, x);
    }
  }

  ULAM_DEVICE f scaled_noise(uint32_t i, uint32_t left) const {
    f z;
    if (s.noise)
      z = noise.widen(noise.load(given, i, left));
    else
      z = normals<Layout>(stream, i);
    if (row.flags & (kLearned | kNormalise)) {  // one test: an ordinary row pays for one
      if (row.flags & kLearned) {
        const char* v = static_cast<const char*>(s.model) + model.bytes(b * s.model_stride + s.elements);
        z = learned_noise<V>(row, model.widen(model.load(v, i, left)), z);
      }
      if (row.flags & kNormalise) z = V::mul(V::set(scales().z), z);
    }
    return z;
  }

  // Read where they are used: in registers they would cost the rows that have none.
  ULAM_DEVICE Scales scales() const {
    const float* const own = s.scales + 4 * b;
    return {__ldg(own), __ldg(own + 1), __ldg(own + 2), __ldg(own + 3)};
  }
};

template <class Types, int R>
ULAM_DEVICE void step_chain(const Step& s, int64_t b, uint32_t missing, uint32_t width, uint32_t span) {
  using Layout = typename Types::Layout;
  float c[row_width(R)];
  const uint32_t flags = load_row<R>(s, b, missing, c);
  if (!(flags & kWrites)) return;
  const Row<R> row(c, flags);
  const ChainStep<Types, R> chain(s, row, b, width);
  const uint32_t elements = static_cast<uint32_t>(s.elements);
  const uint32_t first = blockIdx.y * span, end = first + min(span, elements - first);
#pragma unroll 1
  for (uint32_t i = first + Layout::first(); i < end; i += Layout::step()) chain(i, end - i);
}

template <class S, class M, int R>
__global__ void __launch_bounds__(kThreads) step_vectors(const Step s, uint32_t missing, uint32_t span) {
  step_chain<KnownTypes<S, M>, R>(s, blockIdx.x, missing, 0, span);
}

template <int R>
__global__ void __launch_bounds__(kThreads) step_quads(const Step s, uint32_t missing, uint32_t span, uint32_t width) {
  const int64_t b = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (b < s.chains) step_chain<AnyTypes, R>(s, b, missing, width, span);
}

namespace {

template <int R>
cudaError_t launch_step(const Step& s, uint32_t missing, void* stream) {
  const int64_t n = s.elements;
  const int run = s.state_type == kFloat32 ? 4 : 8;
  const Operand state{s.state, s.state_type}, source{s.source, s.state_type},
      model{s.model, s.model_type, s.model_stride};
  const Operand uncond{s.uncond, s.model_type, s.model_stride}, noise{s.noise, kFloat32}, net{s.net_in, s.net_type};
  if (vectors_fit(n, run, {state, source, model, uncond, noise, net})) {
    const Plan plan = plan_vectors(s.chains, n);
    const DType model_type = s.model ? s.model_type : s.state_type;
    const auto go = [&](auto kernel) { return launch(kernel, plan, stream, s, missing, plan.span); };
    if (s.state_type == kFloat32 && model_type == kFloat32) return go(step_vectors<Float32, Float32, R>);
    if (s.state_type == kFloat32 && model_type == kBFloat16) return go(step_vectors<Float32, BFloat16, R>);
    if (s.state_type == kFloat32 && model_type == kFloat16) return go(step_vectors<Float32, Float16, R>);
    if (s.state_type == kBFloat16 && model_type == kBFloat16) return go(step_vectors<BFloat16, BFloat16, R>);
    if (s.state_type == kFloat16 && model_type == kFloat16) return go(step_vectors<Float16, Float16, R>);
  }
  const Plan plan = plan_quads(s.chains, n);
  return launch(step_quads<R>, plan, stream, s, missing, plan.span,
                access_width(n, {state, source, model, uncond, noise, net}));
}

cudaError_t launch_step(const Step& s, void* stream) {
  uint32_t missing = 0;
  if (!s.model) missing |= kReadsModel;
  if (!s.model || s.model_stride < 2 * s.elements) missing |= kLearned;
  if (!s.noise && !(s.seed && s.chain && s.draw)) missing |= kReadsNoise;
  if (!s.scales) missing |= kReduced;
  switch (s.registers) {
    case 1:
      return launch_step<1>(s, missing, stream);
    case 2:
      return launch_step<2>(s, missing, stream);
    case 3:
      return launch_step<3>(s, missing, stream);
    case 4:
      return launch_step<4>(s, missing, stream);
    default:
      return launch_step<5>(s, missing, stream);
  }
}

}  // namespace

const char* step(const Step& s, void* stream) {
  if (s.chains == 0 || s.elements == 0) return nullptr;
  const cudaError_t error = launch_step(s, stream);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "step: could not launch on %d registers of %lld chains of %lld elements", s.registers,
                 static_cast<long long>(s.chains), static_cast<long long>(s.elements));
}

}  // namespace ulam::cuda
