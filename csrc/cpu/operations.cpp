// The operations, shared among threads.
#include <cstring>
#include <memory>

#include "kernels.h"
#include "threads.h"

namespace ulam::cpu {
namespace {

constexpr int64_t kLongestShort = 128;  // up to here chains are worked on side by side

// An operation whose elements are independent, so that a long chain may be cut.
template <class Arguments>
void elementwise(void (*operation)(const Arguments&, int64_t, int64_t, int64_t), const Arguments& s, int width,
                 int threads) {
  if (s.elements > kLongestShort) return in_chunks(operation, s, threads);
  share((s.chains + width - 1) / width, s.chains * s.elements, threads,
        [&](int64_t begin, int64_t end) { operation(s, 0, begin, end); });
}

void count_on(const Kernels& k, const Advance& s, const uint8_t* bad, int threads) {
  share(s.chains, s.chains, threads, [&](int64_t begin, int64_t end) { k.count_on(s, bad, begin, end); });
}

void check_and_count_on(const Kernels& k, const Advance& s, uint8_t* bad, int threads) {
  const int64_t chunk = s.elements <= kChunk ? s.elements : kChunk;
  const int64_t units = s.chains * ((s.elements + chunk - 1) / chunk);
  share(units, s.chains * s.elements, threads,
        [&](int64_t begin, int64_t end) { k.find_bad(s, chunk, begin, end, bad); });
  count_on(k, s, bad, threads);
}

}  // namespace

void step(const Kernels& k, const Step& s, int threads) { in_chunks(k.step, s, threads); }
void blend(const Kernels& k, const Blend& s, int threads) { in_chunks(k.blend, s, threads); }
void fill(const Kernels& k, const Fill& s, int threads) { in_chunks(k.fill, s, threads); }
void affine(const Kernels& k, const Affine& s, int threads) { in_chunks(k.affine, s, threads); }

void reduce(const Kernels& k, const Reduce& s, int threads) {
  const int64_t chains = s.step.chains, elements = s.step.elements;
  if (chains == 0 || elements == 0) return;
  const int64_t parts = parts_of(chains, chains * elements, threads);
  const std::unique_ptr<uint32_t[]> scratch(new uint32_t[2 * elements * parts]);
  in_parts(parts, [&](int64_t part) {
    k.reduce(s, scratch.get() + 2 * elements * part, chains * part / parts, chains * (part + 1) / parts);
  });
}

bool is_small(const Advance& s) { return s.chains <= kSerialElements && s.chains * s.elements <= kSerialElements; }
bool is_small(const LookUp& s) { return s.chains <= kSerialElements; }

void advance(const Kernels& k, const Advance& s, int threads) {
  if (!s.model || s.elements == 0) return count_on(k, s, nullptr, threads);
  if (s.chains <= kSerialElements) {
    uint8_t bad[kSerialElements];
    std::memset(bad, 0, static_cast<size_t>(s.chains));
    return check_and_count_on(k, s, bad, threads);
  }
  const std::unique_ptr<uint8_t[]> bad(new uint8_t[s.chains]());
  check_and_count_on(k, s, bad.get(), threads);
}

void look_up(const Kernels& k, const LookUp& s, int threads) {
  share(s.chains, s.chains, threads, [&](int64_t begin, int64_t end) { k.look_up(s, begin, end); });
}

int64_t first_outside(const Kernels& k, const int64_t* row, int64_t chains, int64_t rows, int threads) {
  int64_t first = chains;
  const auto look = [&](int64_t begin, int64_t end) {
    const int64_t found = k.first_outside(row, rows, begin, end);
    if (found == end) return;
#pragma omp critical
    first = found < first ? found : first;
  };
  share(chains, chains, threads, look);
  return first;
}

void langevin(const Kernels& k, const Langevin& s, int threads) { elementwise(k.langevin, s, k.width, threads); }
void kick_drift(const Kernels& k, const KickDrift& s, int threads) { elementwise(k.kick_drift, s, k.width, threads); }

void mala_accept(const Kernels& k, const MalaAccept& s, int threads) {
  by_chain(k.mala_accept, s, k.width, s.elements, threads);
}

void squared_norm(const Kernels& k, const SquaredNorm& s, int threads) {
  by_chain(k.squared_norm, s, k.width, s.elements, threads);
}

void accept(const Kernels& k, const Accept& s, int threads) {
  int64_t words = 16;
  for (int i = 0; i < s.count; ++i) words += s.pairs[i].bytes / 4;
  by_chain(k.accept, s, k.width, words, threads);
}

void evaluate(const Kernels& k, const Evaluate& s, int threads) {
  by_chain(k.evaluate, s, k.width, s.target.dimension * (1 + s.target.components), threads);
}

void run(const Kernels& k, const Run& s, int threads) {
  const int64_t steps = std::min(s.steps, kSerialElements);  // more change no choice
  by_chain(k.run, s, k.width, s.target.dimension * (1 + s.target.components) * steps, threads);
}

void gaussian_kl(const Kernels& k, const GaussianKl& s, int threads) {
  by_chain(k.gaussian_kl, s, 1, s.elements, threads);
}

void discretised(const Kernels& k, const DiscretisedLikelihood& s, int threads) {
  by_chain(k.discretised, s, 1, s.elements, threads);
}

void hash_noise(const Kernels& k, uint64_t first, uint64_t count, uint64_t sums[3], int threads) {
  uint64_t a = 0, b = 0, c = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : a, b, c)
  for (int64_t block = 0; block < static_cast<int64_t>(count >> 10); ++block) {
    uint64_t part[3] = {};
    k.hash_noise(first + (static_cast<uint64_t>(block) << 10), 1 << 10, part);
    a += part[0];
    b += part[1];
    c += part[2];
  }
  sums[0] = a;
  sums[1] = b;
  sums[2] = c;
}

}  // namespace ulam::cpu
