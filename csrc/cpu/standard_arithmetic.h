// The arithmetic of the standard whatever the caller's thread is set to: round to nearest, keep subnormal numbers.
#pragma once

#if !defined(ULAM_NO_X86)
#include <immintrin.h>
#endif

namespace ulam::cpu {

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
  StandardArithmetic() {}  // not trivial, so that no compiler calls it unused
#endif
};

}  // namespace ulam::cpu
