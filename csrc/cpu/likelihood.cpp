// How the sums over chains are shared among threads.
#include "likelihood_kernels.h"

#include <algorithm>

#include "standard_arithmetic.h"

namespace ulam::cpu {
namespace {

constexpr int64_t kSerialElements = 8192;  // a parallel region costs about 5 us; below this one thread is faster

const LikelihoodKernels& likelihood_of(const Kernels& k) {
#if !defined(ULAM_NO_X86)
  if (&k == &avx512_kernels) return likelihood_avx512;
  if (&k == &avx2_kernels) return likelihood_avx2;
#endif
  (void)k;
  return likelihood_portable;
}

template <class Arguments>
void by_chain(void (*operation)(const Arguments&, int64_t, int64_t), const Arguments& s, int threads) {
  const bool serial = threads <= 1 || s.chains * s.elements <= kSerialElements;
  const int64_t parts = serial ? 1 : std::min<int64_t>(threads, s.chains);
  const auto run = [&](int64_t part) {
    const StandardArithmetic standard;
    operation(s, s.chains * part / parts, s.chains * (part + 1) / parts);
  };
  if (parts <= 1) return run(0);
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) run(part);
}

}  // namespace

void gaussian_kl(const Kernels& k, const GaussianKl& s, int threads) {
  by_chain(likelihood_of(k).gaussian_kl, s, threads);
}

void discretised(const Kernels& k, const DiscretisedLikelihood& s, int threads) {
  by_chain(likelihood_of(k).discretised, s, threads);
}

}  // namespace ulam::cpu
