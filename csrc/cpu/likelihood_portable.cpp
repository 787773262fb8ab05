// Compiled for any machine.
#include "lanes_scalar.h"
#include "likelihood_impl.h"

namespace ulam::cpu {
const LikelihoodKernels likelihood_portable = likelihood_with<OneLane>();
}
