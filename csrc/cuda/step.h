// The fused step: one row of the table a chain. See ulam/row.h for what a row does to an element.
//
// The kernels are compiled for the number of registers, for whether the squares of the noise are wanted and, where all
// is aligned and chains are long, for the types of state and model.
#pragma once

#include "chain_step.h"

namespace ulam::cuda {

template <class S, class M, int R, bool records>
__global__ void __launch_bounds__(kThreads) step_vectors(const Step s, uint32_t missing, uint32_t span) {
  if constexpr (records) {
    SquareSum sum;
    step_chain<KnownTypes<S, M, R>, R>(s, blockIdx.x, missing, span, {}, sum);
    sum.add_block(s.squares + blockIdx.x);
  } else {
    step_chain<KnownTypes<S, M, R>, R>(s, blockIdx.x, missing, span, {});
  }
}

template <int R, bool records>
__global__ void __launch_bounds__(kThreads) step_quads(const Step s, uint32_t missing, uint32_t span, uint32_t width) {
  const int64_t b = chain_of_thread();
  if constexpr (records) {
    SquareSum sum;
    if (b < s.chains) step_chain<AnyTypes<Quads>, R>(s, b, missing, span, {width}, sum);
    sum.add_chains(s, b);
  } else {
    if (b < s.chains) step_chain<AnyTypes<Quads>, R>(s, b, missing, span, {width});
  }
}

// As load_row, for a kernel that asks for all at once: nothing waits for the flags. There is a row at least.
template <int R>
ULAM_DEVICE uint32_t load_whole_row(const Step& s, int64_t index, uint32_t missing, float c[row_width(R)]) {
  const bool inside = static_cast<uint64_t>(index) < static_cast<uint64_t>(s.rows);
  const int64_t at = inside ? index : 0;
  uint32_t flags = static_cast<uint32_t>(__ldg(s.flags + at));
  ULAM_UNROLL
  for (int k = 0; k < row_width(R); ++k) c[k] = __ldg(s.coef + at * row_width(R) + k);
  if (!inside || (flags & missing)) {
    flags = inside ? flags & kWrites : kWrites;  // so the columns before these are not read
    ULAM_UNROLL
    for (int k = kNextScale; k < row_width(R); ++k) c[k] = Scalar::as_float(0x7fc00000u);
  }
  return flags;
}

// Chains of which a block takes all it has at once, a million of two elements perhaps: a thread does little but wait
// for memory, so it asks first for all that does not depend on the row, together with the row's number, and then for
// the row. What the row turns out not to read was loaded for nothing and takes no part. Pairs are for chains that have
// no more elements: one thread has each of them.
template <class Group, int R, class... Sum>
ULAM_DEVICE void step_at_once(const Step& s, uint32_t missing, uint32_t span, uint32_t width, Sum&... sum) {
  constexpr bool whole = Group::lanes == 2;
  constexpr int N = Group::lanes;
  const int64_t b = chain_of_thread();
  const uint32_t elements = static_cast<uint32_t>(s.elements);
  const uint32_t first = whole ? 0 : blockIdx.y * span, end = first + (whole ? elements : min(span, elements - first));
  const uint32_t i = whole ? 0 : first + Group::first();
  if (b >= s.chains || i >= end) return;
  const AnyTypes<Group> types{width};
  const typename Group::Any state = types.state(s), model = types.model(s);
  const int64_t start = b * elements, skipped = model.bytes(b * static_cast<uint32_t>(s.model_stride));
  const int64_t index = __ldg(s.row + b);
  const float weight = guidance_weight(s, b);
  Ids ids;
  if (s.seed) ids = Ids(s, b);
  Raw<N> m = Raw<N>::unread(), other = Raw<N>::unread(), old[R];
  if (s.model) m = model.load(static_cast<const char*>(s.model) + skipped, i, end - i);
  if (s.uncond) other = model.load(static_cast<const char*>(s.uncond) + skipped, i, end - i);
  ULAM_UNROLL
  for (int j = 0; j < R; ++j) {
    const char* const from = static_cast<const char*>(j == 0 ? s.source : s.state) + state.bytes(start);
    old[j] = state.load(from + j * state.bytes(s.chains * s.elements), i, end - i);
  }

  float c[row_width(R)];
  const uint32_t flags = load_whole_row<R>(s, index, missing, c);
  if (!(flags & kWrites)) return;
  const Row<R> row(c, flags);
  ChainStep<AnyTypes<Group>, R, SquaresOf<Sum...>> chain(s, row, b, types, weight, sum...);
  if (chain.makes_noise()) chain.make_noise_of(ids);
  if (s.uncond && weight == 0.0f) m = other;
  chain.execute(i, end - i, m, other, old);
}

template <class Group, int R, bool records>
__global__ void __launch_bounds__(kShortThreads)
    step_short(const Step s, uint32_t missing, uint32_t span, uint32_t width) {
  if constexpr (records) {
    SquareSum sum;
    step_at_once<Group, R>(s, missing, span, width, sum);
    sum.add_chains(s, chain_of_thread());
  } else {
    step_at_once<Group, R>(s, missing, span, width);
  }
}

template <bool records, int R>
cudaError_t launch_step(const Step& s, uint32_t missing, void* stream) {
  const int64_t n = s.elements;
  const int run = s.state_type == kFloat32 ? 4 : 8;
  const Operand state{s.state, s.state_type}, source{s.source, s.state_type},
      model{s.model, s.model_type, s.model_stride};
  const Operand uncond{s.uncond, s.model_type, s.model_stride}, noise{s.noise, kFloat32}, net{s.net_in, s.net_type};
  if (vectors_fit(n, run, {state, source, model, uncond, noise, net})) {
    const Plan plan = plan_vectors(s.chains, n, step_lanes(s.state_type == kFloat32 ? 4 : 2, R));
    const DType model_type = s.model ? s.model_type : s.state_type;
    const auto go = [&](auto kernel) { return launch(kernel, plan, stream, s, missing, plan.span); };
    if (s.state_type == kFloat32 && model_type == kFloat32) return go(step_vectors<Float32, Float32, R, records>);
    if (s.state_type == kFloat32 && model_type == kBFloat16) return go(step_vectors<Float32, BFloat16, R, records>);
    if (s.state_type == kFloat32 && model_type == kFloat16) return go(step_vectors<Float32, Float16, R, records>);
    if (s.state_type == kBFloat16 && model_type == kBFloat16) return go(step_vectors<BFloat16, BFloat16, R, records>);
    if (s.state_type == kFloat16 && model_type == kFloat16) return go(step_vectors<Float16, Float16, R, records>);
  }
  const uint32_t width = access_width(n, {state, source, model, uncond, noise, net});
  const auto go = [&](auto kernel, const Plan& plan) {
    return launch(kernel, plan, stream, s, missing, plan.span, width);
  };
  if (n <= 2 && s.rows) return go(step_short<Pairs, R, records>, plan_short(s.chains, n, 2));
  const Plan plan = plan_short(s.chains, n, 4);
  if (in_one_pass(plan, 4) && s.rows) return go(step_short<Quads, R, records>, plan);
  return go(step_quads<R, records>, plan_quads(s.chains, n));
}

template <bool records>
cudaError_t launch_step(const Step& s, uint32_t missing, void* stream) {
  return with_registers(s.registers,
                        [&](auto registers) { return launch_step<records, registers>(s, missing, stream); });
}

}  // namespace ulam::cuda
