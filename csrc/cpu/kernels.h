// The native CPU backend: what the bindings call, and what one instruction set must provide.
#pragma once

#include <cstdint>

#include "ulam/operations.h"

namespace ulam::cpu {

// One instruction set. An operation is cut into units of one chain and at most `chunk` elements; `run`
// executes the units [begin, end). A reduction is of whole chains, and has scratch of two words an element. find_bad is
// of units too, count_on, look_up and first_outside of the chains [begin, end): see tick.h. hash_noise adds the noise
// standard's checksums of the words [first, first + count).
struct Kernels {
  const char* name;
  void (*step)(const Step&, int64_t chunk, int64_t begin, int64_t end);
  void (*reduce)(const Reduce&, uint32_t* scratch, int64_t begin, int64_t end);
  void (*blend)(const Blend&, int64_t chunk, int64_t begin, int64_t end);
  void (*fill)(const Fill&, int64_t chunk, int64_t begin, int64_t end);
  void (*affine)(const Affine&, int64_t chunk, int64_t begin, int64_t end);
  void (*find_bad)(const Advance&, int64_t chunk, int64_t begin, int64_t end, uint8_t* bad);
  void (*count_on)(const Advance&, const uint8_t* bad, int64_t begin, int64_t end);
  void (*look_up)(const LookUp&, int64_t begin, int64_t end);
  int64_t (*first_outside)(const int64_t* row, int64_t rows, int64_t begin, int64_t end);
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
void advance(const Kernels&, const Advance&, int threads);
void look_up(const Kernels&, const LookUp&, int threads);
void hash_noise(const Kernels&, uint64_t first, uint64_t count, uint64_t sums[3], int threads);

// Whether one thread does all of it, in a few microseconds.
bool is_small(const Advance&);
bool is_small(const LookUp&);

// The first of the chains whose row is outside a table of `rows`; `chains` where there is none.
int64_t first_outside(const Kernels&, const int64_t* row, int64_t chains, int64_t rows, int threads);

// Null if this instruction set reproduces known answers of the noise, the clip and the reductions, else what differs.
const char* self_check(const Kernels&);

}  // namespace ulam::cpu
