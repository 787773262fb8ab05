// The operations, shared among threads.
#include <cstring>
#include <memory>

#include "kernels.h"
#include "threads.h"
#include "ulam/tick.h"

namespace ulam::cpu {
namespace {

constexpr int64_t kLongestShort = 128;  // up to here chains are worked on side by side

// The work of a chain, counted in elements.
template <class Arguments>
int64_t work_of(const Arguments& s) {
  return s.elements;
}
int64_t work_of(const Accept& s) {
  int64_t words = 16;
  for (int i = 0; i < s.count; ++i) words += s.pairs[i].bytes / 4;
  return words;
}
int64_t work_of(const Evaluate& s) { return s.target.dimension * (1 + s.target.components); }
int64_t work_of(const Run& s) {
  const int64_t steps = std::min(s.steps, kSerialElements);  // more do not change the choice
  return s.target.dimension * (1 + s.target.components) * steps;
}

int64_t work_of(const TreeLeap& s) { return 8 * s.elements + 128; }
int64_t work_of(const TreeRun&) { return kSerialElements; }

template <class Arguments>
void shared(void (*units)(const Arguments&, int64_t, int64_t, int64_t), const Arguments& s, int width, int threads) {
  constexpr Sharing sharing = Arguments::sharing;
  const int64_t each = work_of(s), work = s.chains * each;
  if (work == 0) return;
  int64_t chunk = 0, count = s.chains;
  if constexpr (sharing == Sharing::kPieces || sharing == Sharing::kSideBySide) {
    const bool whole = each <= kChunk || (sharing == Sharing::kPieces && parts_of(work, work, threads) == 1);
    chunk = whole ? each : kChunk;
    count = s.chains * ((each + chunk - 1) / chunk);
  }
  if (sharing == Sharing::kGroups || (sharing == Sharing::kSideBySide && each <= kLongestShort)) {
    chunk = 0;
    count = (s.chains + width - 1) / width;
  }
  share(count, work, threads, [&](int64_t begin, int64_t end) { units(s, chunk, begin, end); });
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

#define ULAM_SHARE(operation, Arguments) \
  void operation(const Kernels& k, const Arguments& s, int threads) { shared(k.operation, s, k.width, threads); }
ULAM_SHARED_OPERATIONS(ULAM_SHARE)
ULAM_CPU_OPERATIONS(ULAM_SHARE)
#undef ULAM_SHARE

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

namespace {

// The chains of a network in shares: of whole vectors of them, where there are enough. Two chains read the weights as
// fast as one. work: of a chain.
template <class Part>
void share_network(const Kernels& k, int64_t count, double work, int threads, const Part& part) {
  const int64_t tile = count > 2 * k.width * threads ? k.width : 2, tiles = (count + tile - 1) / tile;
  const bool much = work * static_cast<double>(count) > 64.0 * kSerialElements;
  share(tiles, much ? kSerialElements + 1 : 0, threads,
        [&](int64_t begin, int64_t end) { part(begin * tile, std::min(end * tile, count)); });
}

}  // namespace

void walk(const Kernels& k, const Walk& s, int threads) {
  const int64_t chains = s.step.chains;
  const std::unique_ptr<int64_t[]> active(new int64_t[chains]);
  int64_t count = 0;
  const auto line = [&](int which, int64_t b) -> int64_t& { return s.cursor[which * chains + b]; };
  for (int64_t b = 0; b < chains; ++b) {
    if (line(kRow, b) != kIdleRow || line(kRowAdvance, b) != 0)
      active[count++] = b;
    else
      line(kDraw, b) += s.count * line(kDrawAdvance, b);
  }
  if (count == 0 || s.step.elements == 0) return;
  share_network(k, count, static_cast<double>(s.work) * static_cast<double>(s.count), threads,
                [&](int64_t begin, int64_t end) { k.walk(s, active.get(), begin, end); });
}

void call_network(const Kernels& k, const NetworkCall& s, int threads) {
  share_network(k, s.chains, static_cast<double>(s.work), threads,
                [&](int64_t begin, int64_t end) { k.call_network(s, begin, end); });
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

int64_t multiply_adds(const Kernels& k, int64_t rounds, int threads) {
  int64_t operations = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : operations)
  for (int thread = 0; thread < threads; ++thread) {
    alignas(64) float out[16] = {};
    operations += k.multiply_adds(rounds, out);
  }
  return operations;
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
