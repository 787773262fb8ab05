// How the arguments of the Langevin and Metropolis operations come from Python, as in arguments.h: the order is that of
// kernels/ulam_kernels/native/mcmc.py. `Own` is the backend's own argument (the CPU's thread count, a CUDA stream).
#pragma once

#include <pybind11/pybind11.h>

#include "arguments.h"
#include "ulam/mcmc.h"

namespace ulam {

inline Ids ids_of(uintptr_t seed, uintptr_t chain, uintptr_t draw) {
  return {pointer<const int64_t>(seed), pointer<const int64_t>(chain), pointer<const int64_t>(draw)};
}

template <class Own, class Execute>
auto function_of(const Langevin*, Execute execute) {
  return [execute](int64_t chains, int64_t elements, uintptr_t x, uintptr_t score, uintptr_t step,
                   uintptr_t noise_scale, uintptr_t scale, float lo, float hi, uintptr_t seed, uintptr_t chain,
                   uintptr_t draw, uintptr_t noise, uintptr_t out, Own own) {
    execute(Langevin{chains, elements, pointer<const float>(x), pointer<const float>(score), pointer<const float>(step),
                     pointer<const float>(noise_scale), pointer<const float>(scale), lo, hi, ids_of(seed, chain, draw),
                     pointer<const float>(noise), pointer<float>(out)},
            own);
  };
}

template <class Own, class Execute>
auto function_of(const KickDrift*, Execute execute) {
  return [execute](int64_t chains, int64_t elements, uintptr_t x, uintptr_t v, uintptr_t score, uintptr_t kick,
                   uintptr_t drift, uintptr_t keep, uintptr_t noise_scale, uintptr_t scale, uintptr_t seed,
                   uintptr_t chain, uintptr_t draw, uintptr_t noise, Own own) {
    execute(KickDrift{chains, elements, pointer<float>(x), pointer<float>(v), pointer<const float>(score),
                      pointer<const float>(kick), pointer<const float>(drift), pointer<const float>(keep),
                      pointer<const float>(noise_scale), pointer<const float>(scale), ids_of(seed, chain, draw),
                      pointer<const float>(noise)},
            own);
  };
}

template <class Own, class Execute>
auto function_of(const MalaAccept*, Execute execute) {
  return [execute](int64_t chains, int64_t elements, uintptr_t x, uintptr_t proposal, uintptr_t score,
                   uintptr_t proposal_score, uintptr_t energy, uintptr_t proposal_energy, uintptr_t step,
                   uintptr_t inverse_temperature, uintptr_t scale, uintptr_t seed, uintptr_t chain, uintptr_t draw,
                   uintptr_t accepted, uintptr_t log_ratio, Own own) {
    execute(MalaAccept{chains, elements, pointer<float>(x), pointer<float>(score), pointer<const float>(proposal),
                       pointer<const float>(proposal_score), pointer<double>(energy),
                       pointer<const double>(proposal_energy), pointer<const float>(step),
                       pointer<const float>(inverse_temperature), pointer<const float>(scale),
                       ids_of(seed, chain, draw), pointer<bool>(accepted), pointer<double>(log_ratio)},
            own);
  };
}

template <class Own, class Execute>
auto function_of(const SquaredNorm*, Execute execute) {
  return [execute](int64_t chains, int64_t elements, uintptr_t x, uintptr_t out, Own own) {
    execute(SquaredNorm{chains, elements, pointer<const float>(x), pointer<double>(out)}, own);
  };
}

// `pairs` holds, for each pair, the addresses of kept and proposed and the bytes of a chain.
template <class Own, class Execute>
auto function_of(const Accept*, Execute execute) {
  return [execute](int64_t chains, uintptr_t log_ratio, const pybind11::tuple& pairs, uintptr_t seed, uintptr_t chain,
                   uintptr_t draw, uintptr_t accepted, Own own) {
    Accept s{};
    s.chains = chains;
    s.log_ratio = pointer<const double>(log_ratio);
    s.count = static_cast<int>(pairs.size()) / 3;
    for (int i = 0; i < s.count; ++i)
      s.pairs[i] = {pointer<char>(pairs[3 * i].cast<uintptr_t>()),
                    pointer<const char>(pairs[3 * i + 1].cast<uintptr_t>()), pairs[3 * i + 2].cast<int64_t>()};
    s.ids = ids_of(seed, chain, draw);
    s.accepted = pointer<bool>(accepted);
    execute(s, own);
  };
}

template <class Own, class Execute>
auto function_of(const Evaluate*, Execute execute) {
  return [execute](int kind, int64_t dimension, int64_t components, uintptr_t params, int64_t chains, uintptr_t x,
                   uintptr_t energy, uintptr_t score, Own own) {
    execute(Evaluate{{kind, dimension, components, pointer<const float>(params)},
                     chains,
                     pointer<const float>(x),
                     pointer<double>(energy),
                     pointer<float>(score)},
            own);
  };
}

template <class Own, class Execute>
auto function_of(const Run*, Execute execute) {
  return [execute](int kind, int64_t dimension, int64_t components, uintptr_t params, int64_t chains, uintptr_t x,
                   int sampler, uintptr_t coef, int64_t steps, uintptr_t seed, uintptr_t chain, uintptr_t draw,
                   uintptr_t v, int64_t leapfrog, uintptr_t scale, float lo, float hi, int64_t thin, uintptr_t draws,
                   uintptr_t energies, uintptr_t moments, uintptr_t accepted, uintptr_t diverged, Own own) {
    Run s{};
    s.target = {kind, dimension, components, pointer<const float>(params)};
    s.chains = chains;
    s.x = pointer<float>(x);
    s.sampler = sampler;
    s.coef = pointer<const float>(coef);
    s.steps = steps;
    s.ids = ids_of(seed, chain, draw);
    s.v = pointer<float>(v);
    s.leapfrog = leapfrog;
    s.scale = pointer<const float>(scale);
    s.lo = lo;
    s.hi = hi;
    s.thin = thin;
    s.draws = pointer<float>(draws);
    s.energies = pointer<double>(energies);
    s.moments = pointer<double>(moments);
    s.accepted = pointer<int64_t>(accepted);
    s.diverged = pointer<int64_t>(diverged);
    execute(s, own);
  };
}

}  // namespace ulam
