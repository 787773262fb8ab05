// The CUDA operations: plain structures of device pointers, a stream, and an error text. No CUDA header is needed.
#pragma once

#include "ulam/likelihood.h"
#include "ulam/mcmc.h"
#include "ulam/operations.h"

namespace ulam::cuda {

// A row that is outside the table, or reads what is not given, writes NaN (-1 where times are integers): the host does
// not see it and cannot raise, and silence would be worse. Each operation launches on `stream` of the current device,
// allocates nothing, and returns null or what went wrong.
#define ULAM_DECLARE(operation, Arguments) const char* operation(const Arguments&, void* stream);
ULAM_OPERATIONS(ULAM_DECLARE)
#undef ULAM_DECLARE

// How many devices these kernels can run on, and the reason why there is none (null if there is one).
int device_count();
const char* unavailable_reason();

}  // namespace ulam::cuda
