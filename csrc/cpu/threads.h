// How an operation's work is shared among threads, and their arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

#if !defined(ULAM_NO_X86)
#include <immintrin.h>
#endif

namespace ulam::cpu {

// A parallel region costs about 5 us; below this much work one thread is faster.
constexpr int64_t kSerialElements = 8192;
constexpr int64_t kChunk = 16384;

// The arithmetic of the standard, whatever the calling thread is set to: round to nearest, keep subnormal numbers.
class StandardArithmetic {
#if !defined(ULAM_NO_X86)
 public:
  StandardArithmetic() : before_(_mm_getcsr()) { _mm_setcsr(before_ & ~kFlushAndRounding); }
  ~StandardArithmetic() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kFlushAndRounding = 0xE040u;
  unsigned before_;
#else
 public:
  StandardArithmetic() {}  // not trivial, so that no compiler warns that it is unused
#endif
};

inline int64_t parts_of(int64_t units, int64_t work, int threads) {
  return threads <= 1 || work <= kSerialElements ? 1 : std::min<int64_t>(threads, units);
}

// Calls run(part), each part on a thread of its own.
template <class Part>
void in_parts(int64_t parts, const Part& run) {
  if (parts <= 1) {
    const StandardArithmetic standard;
    return run(0);
  }
#pragma omp parallel for num_threads(parts) schedule(static, 1)
  for (int64_t part = 0; part < parts; ++part) {
    const StandardArithmetic standard;
    run(part);
  }
}

// Calls run(begin, end) on shares of the units; `work` is that of all of them, in elements.
template <class Units>
void share(int64_t units, int64_t work, int threads, const Units& run) {
  if (units == 0) return;
  const int64_t parts = parts_of(units, work, threads);
  in_parts(parts, [&](int64_t part) { run(units * part / parts, units * (part + 1) / parts); });
}

}  // namespace ulam::cpu
