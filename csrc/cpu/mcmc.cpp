// How the Langevin and Metropolis operations are shared among threads.
#include "mcmc_kernels.h"

#include "standard_arithmetic.h"

namespace ulam::cpu {
namespace {

// A parallel region costs about 5 us; below this much work one thread is faster.
constexpr int64_t kSerialElements = 8192;
constexpr int64_t kLongestShort = 128;  // up to here chains are worked on side by side
constexpr int64_t kChunk = 16384;

const McmcKernels& mcmc_of(const Kernels& k) {
#if !defined(ULAM_NO_X86)
  if (&k == &avx512_kernels) return mcmc_avx512;
  if (&k == &avx2_kernels) return mcmc_avx2;
#endif
  (void)k;
  return mcmc_portable;
}

template <class Units>
void share(int64_t units, int64_t work, int threads, const Units& run) {
  if (units == 0) return;
  const int64_t parts = threads <= 1 || work <= kSerialElements ? 1 : threads < units ? threads : units;
  if (parts == 1) {
    const StandardArithmetic standard;
    return run(0, units);
  }
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) {
    const StandardArithmetic standard;
    run(units * part / parts, units * (part + 1) / parts);
  }
}

int64_t groups(int64_t chains, int width) { return (chains + width - 1) / width; }

// An operation whose elements are independent, so that a long chain may be cut.
template <class Arguments>
void elementwise(void (*operation)(const Arguments&, int64_t, int64_t, int64_t), const Arguments& s, int width,
                 int threads) {
  const int64_t chunk = s.elements <= kLongestShort ? 0 : s.elements <= kChunk ? s.elements : kChunk;
  const int64_t units = chunk ? s.chains * ((s.elements + chunk - 1) / chunk) : groups(s.chains, width);
  share(units, s.chains * s.elements, threads, [&](int64_t begin, int64_t end) { operation(s, chunk, begin, end); });
}

template <class Arguments>
void by_chain(void (*operation)(const Arguments&, int64_t, int64_t), const Arguments& s, int width, int64_t work,
              int threads) {
  share(groups(s.chains, width), s.chains * work, threads,
        [&](int64_t begin, int64_t end) { operation(s, begin, end); });
}

}  // namespace

void langevin(const Kernels& k, const Langevin& s, int threads) {
  elementwise(mcmc_of(k).langevin, s, mcmc_of(k).width, threads);
}

void kick_drift(const Kernels& k, const KickDrift& s, int threads) {
  elementwise(mcmc_of(k).kick_drift, s, mcmc_of(k).width, threads);
}

void mala_accept(const Kernels& k, const MalaAccept& s, int threads) {
  by_chain(mcmc_of(k).mala_accept, s, mcmc_of(k).width, s.elements, threads);
}

void squared_norm(const Kernels& k, const SquaredNorm& s, int threads) {
  by_chain(mcmc_of(k).squared_norm, s, mcmc_of(k).width, s.elements, threads);
}

void accept(const Kernels& k, const Accept& s, int threads) {
  int64_t words = 16;
  for (int i = 0; i < s.count; ++i) words += s.pairs[i].bytes / 4;
  by_chain(mcmc_of(k).accept, s, mcmc_of(k).width, words, threads);
}

void evaluate(const Kernels& k, const Evaluate& s, int threads) {
  const int64_t each = s.target.dimension * (1 + s.target.components);
  by_chain(mcmc_of(k).evaluate, s, mcmc_of(k).width, each, threads);
}

void run(const Kernels& k, const Run& s, int threads) {
  const int64_t steps = s.steps < kSerialElements ? s.steps : kSerialElements;  // more change no choice
  const int64_t each = s.target.dimension * (1 + s.target.components) * steps;
  by_chain(mcmc_of(k).run, s, mcmc_of(k).width, each, threads);
}

}  // namespace ulam::cpu
