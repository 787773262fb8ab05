// What a thread of a step does to its elements of a chain. See ulam/row.h for what a row does to an element.
//
// What a row does (noise, guidance, clip, learned variance) is decided while it runs, by branches that are the same for
// all elements of a chain.
#pragma once

#include "launch.h"
#include "squares.h"
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

// Copies the coefficients of chain b's row to `c` and returns its flags. `missing` has the flags of what was not given.
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

// How a thread reaches its elements: types and alignment known when compiled, or when run. `variance` is how far v is
// behind m.
template <class S, class M, int R>
struct KnownTypes {
  using Layout = Vectors<S::bytes == 4 ? 4 : 8, step_lanes(S::bytes, R)>;
  using State = typename Layout::template Known<S>;
  using Model = typename Layout::template Known<M>;
  using Noise = typename Layout::template Known<Float32>;

  ULAM_DEVICE State state(const Step& s) const { return State(s.state_type, 0); }
  ULAM_DEVICE Model model(const Step& s) const { return Model(s.model_type, 0); }
  ULAM_DEVICE Noise noise() const { return Noise(kFloat32, 0); }
  ULAM_DEVICE int64_t variance(const Step& s) const { return s.elements; }
  ULAM_DEVICE uint32_t extent(const Step& s) const { return static_cast<uint32_t>(s.elements); }
  ULAM_DEVICE typename Lanes<Layout::lanes>::f normals(const Stream& stream, uint32_t i) const {
    return cuda::normals<Layout>(stream, i);
  }
  ULAM_DEVICE void store_net_in(const Step& s, int64_t start, uint32_t i, uint32_t left,
                                const typename Lanes<Layout::lanes>::f& x) const {
    Layout::store(s.net_type, 0, static_cast<char*>(s.net_in), start, i, left, x);
  }
};
template <class Group>
struct AnyTypes {
  using Layout = Group;
  using State = typename Group::Any;
  using Model = typename Group::Any;
  using Noise = typename Group::Any;
  using f = typename Lanes<Group::lanes>::f;
  const uint32_t width;

  ULAM_DEVICE State state(const Step& s) const { return State(s.state_type, width); }
  ULAM_DEVICE Model model(const Step& s) const { return Model(s.model_type, width); }
  ULAM_DEVICE Noise noise() const { return Noise(kFloat32, width); }
  ULAM_DEVICE int64_t variance(const Step& s) const { return s.elements; }
  ULAM_DEVICE uint32_t extent(const Step& s) const { return static_cast<uint32_t>(s.elements); }
  ULAM_DEVICE f normals(const Stream& stream, uint32_t i) const { return cuda::normals<Group>(stream, i); }
  ULAM_DEVICE void store_net_in(const Step& s, int64_t start, uint32_t i, uint32_t left, const f& x) const {
    Layout::store(s.net_type, width, static_cast<char*>(s.net_in), start, i, left, x);
  }
};
ULAM_DEVICE float guidance_weight(const Step& s, int64_t b) { return s.uncond ? __ldg(s.guidance + b) : 1.0f; }

// The ids that name a chain's noise.
struct Ids {
  uint64_t seed, chain, draw;
  ULAM_DEVICE Ids() {}
  ULAM_DEVICE Ids(const Step& s, int64_t b)
      : seed(static_cast<uint64_t>(__ldg(s.seed + b))),
        chain(static_cast<uint64_t>(__ldg(s.chain + b))),
        draw(static_cast<uint64_t>(__ldg(s.draw + b))) {}
};

// Executes a row on elements of chain b. What the chain's elements share is derived once.
template <class Types, int R, class Squares>
struct ChainStep : Squares {
  using Layout = typename Types::Layout;
  static constexpr int N = Layout::lanes;
  using V = Lanes<N>;
  using f = typename V::f;

  const Step& s;
  const Row<R>& row;
  const Types& types;
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

  template <class... Sum>
  ULAM_DEVICE ChainStep(const Step& s, const Row<R>& row, int64_t b, const Types& types, float weight, Sum&... sum)
      : Squares{sum...},
        s(s),
        row(row),
        types(types),
        state(types.state(s)),
        model(types.model(s)),
        noise(types.noise()),
        b(b),
        start(b * s.elements),
        register_bytes(state.bytes(s.chains * s.elements)),
        r0(static_cast<char*>(s.state) + state.bytes(start)),
        source(static_cast<const char*>(s.source) + state.bytes(start)),
        weight(weight),
        mixes(weight != 0.0f && weight != 1.0f),
        stream{} {
    const int64_t skipped = model.bytes(b * s.model_stride);
    other = static_cast<const char*>(s.uncond) + skipped;
    output = weight != 0.0f ? static_cast<const char*>(s.model) + skipped : other;
    given = reinterpret_cast<const char*>(s.noise) + noise.bytes(start);
  }

  ULAM_DEVICE bool makes_noise() const { return (row.flags & kReadsNoise) && !s.noise; }
  ULAM_DEVICE void make_noise_of(const Ids& ids) { stream = make_stream(ids.seed, ids.chain, ids.draw, 0); }

  // A row that is not idle writes its only register.
  ULAM_DEVICE bool writes(int j) const { return R == 1 || (row.flags >> j & 1); }

  // The thread's elements from i on, of which `left` are in the chain. All is loaded before anything is stored. `bare`:
  // it is known that nothing is mixed into the output, no noise given and no input of the network wanted.
  template <bool bare = false>
  ULAM_DEVICE void operator()(uint32_t i, uint32_t left) const {
    Raw<N> m_raw = Raw<N>::unread(), other_raw = Raw<N>::unread(), old[R];
    if (row.flags & kReadsModel) {
      m_raw = model.load(output, i, left);
      if (!bare && mixes) other_raw = model.load(other, i, left);
    }
    ULAM_UNROLL
    for (int j = 0; j < R; ++j) {
      old[j] = Raw<N>::unread();
      if (row.reads >> j & 1) old[j] = state.load(j == 0 ? source : r0 + j * register_bytes, i, left);
    }
    execute<bare>(i, left, m_raw, other_raw, old);
  }

  template <bool bare = false>
  ULAM_DEVICE void execute(uint32_t i, uint32_t left, const Raw<N>& m_raw, const Raw<N>& other_raw,
                           Raw<N> old[R]) const {
    const f z = row.flags & kReadsNoise ? scaled_noise<bare>(i, left) : V::unread();
    f m = model.widen(m_raw), x0 = V::unread(), r[R];
    if (!bare && mixes) m = guide<V>(m, model.widen(other_raw), weight);
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
    if (!bare && s.net_in) {
      if (!writes(0)) old[0] = state.load(source, i, left);
      const f x = V::mul(V::set(row.c[kNextScale]), state.widen(old[0]));
      types.store_net_in(s, start, i, left, x);
    }
  }

  template <bool bare>
  ULAM_DEVICE f scaled_noise(uint32_t i, uint32_t left) const {
    f z;
    if (!bare && s.noise)
      z = noise.widen(noise.load(given, i, left));
    else
      z = types.normals(stream, i);
    if constexpr (Squares::records) {
      if (!bare && s.noise)
        this->squares.template add_given<Layout>(z, left, s.squares + b);
      else
        this->squares.template add<Layout>(z, left);
    }
    if (row.flags & (kLearned | kNormalise)) {  // one test: an ordinary row pays for one
      if (row.flags & kLearned) {
        const char* v = static_cast<const char*>(s.model) + model.bytes(b * s.model_stride + types.variance(s));
        z = learned_noise<V>(row, model.widen(model.load(v, i, left)), z);
      }
      if (row.flags & kNormalise) z = V::mul(V::set(scales().z), z);
    }
    return z;
  }

  // Read where they are used: in registers they would cost the rows that have none.
  ULAM_DEVICE Scales scales() const {
    const float* const chain_scales = s.scales + 4 * b;
    return {__ldg(chain_scales), __ldg(chain_scales + 1), __ldg(chain_scales + 2), __ldg(chain_scales + 3)};
  }
};

template <class... Sum>
using SquaresOf = std::conditional_t<sizeof...(Sum) != 0, Recorded, Unrecorded>;

// Of blocks that have chains along y.
ULAM_DEVICE int64_t chain_of_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; }

// sum: a SquareSum, where the squares of the noise are wanted.
template <class Types, int R, class... Sum>
ULAM_DEVICE void step_chain(const Step& s, int64_t b, uint32_t missing, uint32_t span, const Types& types,
                            Sum&... sum) {
  using Layout = typename Types::Layout;
  float c[row_width(R)];
  const uint32_t flags = load_row<R>(s, b, missing, c);
  if (!(flags & kWrites)) return;
  const Row<R> row(c, flags);
  ChainStep<Types, R, SquaresOf<Sum...>> chain(s, row, b, types, guidance_weight(s, b), sum...);
  if (chain.makes_noise()) chain.make_noise_of(Ids(s, b));
  const uint32_t first = blockIdx.y * span, end = first + min(span, types.extent(s) - first);
  if constexpr (R == 1 && Layout::lanes == 8) {
    // The rows whose arithmetic takes longer than their memory have loops of their own, in which the compiler knows
    // what was asked here and no branch is left: r0 = a r0 + c m + s z, and r0 = a r0 + b clip(x0) + s z.
    constexpr uint32_t flags_of_both = 1u | kReadsModel | kReadsNoise;
    const auto alone = [&] {
#pragma unroll 1
      for (uint32_t i = first + Layout::first(); i < end; i += Layout::step())
        chain.template operator()<true>(i, end - i);
    };
    if (!chain.mixes && !s.noise && !s.net_in && row.reads == 1u) {
      if (row.flags == flags_of_both && row.terms[0] == 0b1101u) return alone();
      if (row.flags == (flags_of_both | kUsesX0) && row.terms[0] == 0b1011u && c[kKx] != 0.0f && c[kKm] != 0.0f)
        return alone();
    }
  }
#pragma unroll 1
  for (uint32_t i = first + Layout::first(); i < end; i += Layout::step()) chain(i, end - i);
}

// Launches a step of which `last` names tensors, as launch_step of step.h does the others: see step_pixels.h.
cudaError_t launch_channels_last(const Step& s, uint32_t missing, void* stream);

// Those of steps that record.
cudaError_t launch_recorded(const Step& s, uint32_t missing, void* stream);
cudaError_t launch_recorded_channels_last(const Step& s, uint32_t missing, void* stream);

}  // namespace ulam::cuda
