// The noise of a chain on the device, and its Metropolis test.
#pragma once

#include "lanes.h"
#include "ulam/mcmc.h"

namespace ulam::cuda {

ULAM_DEVICE Stream stream_of(const Ids& ids, int64_t b, uint64_t ahead, uint32_t tag) {
  return make_stream(static_cast<uint64_t>(__ldg(ids.seed + b)), static_cast<uint64_t>(__ldg(ids.chain + b)),
                     static_cast<uint64_t>(__ldg(ids.draw + b)) + ahead, tag);
}

// sqrt(-2 ln u) of the Metropolis test's u.
ULAM_DEVICE float test_radius(const Stream& stream) {
  uint32_t w[4];
  philox_words<Scalar>(stream, kAcceptTag << 28, w);
  return radius<Scalar>(w[0]);
}

}  // namespace ulam::cuda
