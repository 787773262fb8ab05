// Exact order statistics. They are kept out of the vector code, because the standard library's templates must not be
// compiled for an instruction set that this machine may lack.
#pragma once

#include <cstdint>

namespace ulam::cpu {

// The order statistics k and k + 1 (k alone where there is no other) of n numbers, which are reordered.
void select(uint32_t* numbers, int64_t n, int64_t k, uint32_t found[2]);

// Bounds, inclusive, that hold the order statistics k and k + 1 of n numbers very likely, and few others: from a sample
// of them. For n >= kLeastBracketed numbers below 2^31.
struct Bracket {
  uint32_t low, high;
};
constexpr int64_t kLeastBracketed = 2048;
Bracket bracket_of(const uint32_t* numbers, int64_t n, int64_t k);

}  // namespace ulam::cpu
