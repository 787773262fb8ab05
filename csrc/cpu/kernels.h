// The native CPU backend: what the bindings call, and what one instruction set must provide.
#pragma once

#include <cstdint>

#include "ulam/operations.h"

namespace ulam::cpu {

// One instruction set. An operation is cut into units of one chain and at most `chunk` elements; `run`
// executes the units [begin, end). A reduction is of whole chains, and has scratch of two words an element. hash_noise
// adds the noise standard's checksums of the words [first, first
// + count).
struct Kernels {
  const char* name;
  void (*step)(const Step&, int64_t chunk, int64_t begin, int64_t end);
  void (*reduce)(const Reduce&, uint32_t* scratch, int64_t begin, int64_t end);
  void (*blend)(const Blend&, int64_t chunk, int64_t begin, int64_t end);
  void (*fill)(const Fill&, int64_t chunk, int64_t begin, int64_t end);
  void (*affine)(const Affine&, int64_t chunk, int64_t begin, int64_t end);
  void (*hash_noise)(uint64_t first, uint64_t count, uint64_t sums[3]);
};

extern const Kernels portable_kernels;
#if !defined(ULAM_NO_X86)
extern const Kernels avx2_kernels, avx512_kernels;
#endif

// The instruction sets of this machine, fastest first, ended by null.
const Kernels* const* usable_kernels();

void step(const Kernels&, const Step&, int threads);
void reduce(const Kernels&, const Reduce&, int threads);
void blend(const Kernels&, const Blend&, int threads);
void fill(const Kernels&, const Fill&, int threads);
void affine(const Kernels&, const Affine&, int threads);
void hash_noise(const Kernels&, uint64_t first, uint64_t count, uint64_t sums[3], int threads);

// Null if this instruction set reproduces the noise standard's known answers, else what differs.
const char* self_check(const Kernels&);

}  // namespace ulam::cpu
