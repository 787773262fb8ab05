// Compiled for any machine.
#include <cmath>

#include "mcmc_impl.h"

namespace ulam::cpu {
namespace {

struct McmcScalar : Portable {
  static inline f add(f a, f b) { return a + b; }
  static inline f div(f a, f b) { return a / b; }
  static inline f root(f a) { return std::sqrt(a); }
};

}  // namespace
const McmcKernels mcmc_portable = mcmc_with<McmcScalar>();
}  // namespace ulam::cpu
