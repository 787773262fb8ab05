// The native CPU backend: what the bindings call, and what one instruction set must provide.
#pragma once

#include <cstdint>

#include "ulam/likelihood.h"
#include "ulam/mcmc.h"
#include "ulam/operations.h"
#include "ulam/trees.h"
#include "ulam/walk.h"

namespace ulam::cpu {

constexpr int kDigestBytes = 1024;

// One instruction set. The function of a shared operation executes its units [begin, end): a unit is at most `chunk`
// elements of one chain or, where `chunk` is 0, a group of `width` chains, or one chain (see Sharing). A reduction
// takes scratch of two words an element; find_bad works on pieces, the rest on chains: see tick.h. walk takes the
// numbers of the chains that it works on. hash_noise adds the noise standard's checksums of the words [first, first +
// count). digest fills kDigestBytes that stand for the bytes of `count` arrays, see digest.h. multiply_adds makes that
// many rounds of independent fused multiply-adds and returns their floating-point operations, for measurements. mt19937
// and torch_transform are null where there are no fused multiply-adds: see torch_normal.h. panel: the columns of a
// network's packed weights that lie together.
struct Kernels {
  const char* name;
  int width, panel;
#define ULAM_UNITS(operation, Arguments) void (*operation)(const Arguments&, int64_t chunk, int64_t begin, int64_t end);
  ULAM_SHARED_OPERATIONS(ULAM_UNITS)
  ULAM_CPU_OPERATIONS(ULAM_UNITS)
#undef ULAM_UNITS
  void (*reduce)(const Reduce&, uint32_t* scratch, int64_t begin, int64_t end);
  void (*find_bad)(const Advance&, int64_t chunk, int64_t begin, int64_t end, uint8_t* bad);
  void (*count_on)(const Advance&, const uint8_t* bad, int64_t begin, int64_t end);
  void (*walk)(const Walk&, const int64_t* active, int64_t begin, int64_t end);
  void (*call_network)(const NetworkCall&, int64_t begin, int64_t end);
  void (*look_up)(const LookUp&, int64_t begin, int64_t end);
  int64_t (*first_outside)(const int64_t* row, int64_t rows, int64_t begin, int64_t end);
  void (*hash_noise)(uint64_t first, uint64_t count, uint64_t sums[3]);
  void (*digest)(const uint64_t* addresses, const uint64_t* bytes, int64_t count, unsigned char* out);
  int64_t (*multiply_adds)(int64_t rounds, float* out);
  void (*mt19937)(uint32_t* x, int64_t count);
  void (*torch_transform)(uint32_t* words, int64_t groups);
};

// Those of an instruction set that has products of bf16; all else is avx512's.
struct NetworkKernels {
  void (*walk)(const Walk&, const int64_t* active, int64_t begin, int64_t end);
  void (*call_network)(const NetworkCall&, int64_t begin, int64_t end);
};

extern const Kernels portable_kernels;
#if !defined(ULAM_NO_X86)
extern const Kernels avx2_kernels, avx512_kernels;
extern const NetworkKernels avx512_bf16_networks;
#endif

// The instruction sets of this machine, fastest first, ended by null.
const Kernels* const* usable_kernels();

#define ULAM_DECLARE(operation, Arguments) void operation(const Kernels&, const Arguments&, int threads);
ULAM_OPERATIONS(ULAM_DECLARE)
ULAM_CPU_OPERATIONS(ULAM_DECLARE)
#undef ULAM_DECLARE
void walk(const Kernels&, const Walk&, int threads);
void call_network(const Kernels&, const NetworkCall&, int threads);
void hash_noise(const Kernels&, uint64_t first, uint64_t count, uint64_t sums[3], int threads);

// Rounds of fused multiply-adds on every thread, and all their floating-point operations: the peak of the machine.
int64_t multiply_adds(const Kernels&, int64_t rounds, int threads);

// Whether one thread does all of it, in a few microseconds.
bool is_small(const Advance&);
bool is_small(const LookUp&);

// The first of the chains whose row is outside a table of `rows`; `chains` where there is none.
int64_t first_outside(const Kernels&, const int64_t* row, int64_t chains, int64_t rows, int threads);

// Null if this instruction set reproduces known answers of the noise, the clip and the reductions, else what differs.
const char* self_check(const Kernels&);

}  // namespace ulam::cpu
