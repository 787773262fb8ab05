// How what happens between the network and the fused step is shared among threads.
#include <cstring>
#include <memory>

#include "kernels.h"
#include "standard_arithmetic.h"

namespace ulam::cpu {
namespace {

// A parallel region costs about 5 us; below this much work one thread is faster.
constexpr int64_t kSerial = 8192;
constexpr int64_t kChunk = 16384;

template <class Units>
void share(int64_t units, int64_t work, int threads, const Units& run) {
  const int64_t parts = threads <= 1 || work <= kSerial ? 1 : threads < units ? threads : units;
  if (parts <= 1) {
    const StandardArithmetic standard;
    return run(0, units);
  }
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) {
    const StandardArithmetic standard;
    run(units * part / parts, units * (part + 1) / parts);
  }
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

bool is_small(const Advance& s) { return s.chains <= kSerial && s.chains * s.elements <= kSerial; }
bool is_small(const LookUp& s) { return s.chains <= kSerial; }

void advance(const Kernels& k, const Advance& s, int threads) {
  if (!s.model || s.elements == 0) return count_on(k, s, nullptr, threads);
  if (s.chains <= kSerial) {
    uint8_t bad[kSerial];
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

}  // namespace ulam::cpu
