// The native CPU backend: what the bindings call, and what one instruction set must provide.
#pragma once

#include <cstdint>

#include "ulam/likelihood.h"
#include "ulam/mcmc.h"
#include "ulam/operations.h"

namespace ulam::cpu {

// One instruction set. `run` executes the units [begin, end) of an operation: a unit is at most `chunk` elements of one
// chain; where there is no chunk, or it is 0, a group of `width` chains (langevin to run), or one chain. A reduction
// has scratch of two words an element; find_bad is of units, see tick.h. hash_noise adds the noise standard's checksums
// of the words [first, first + count). mt19937 and torch_transform are null where there are no fused multiply-adds: see
// torch_normal.h.
struct Kernels {
  const char* name;
  int width;
  void (*step)(const Step&, int64_t chunk, int64_t begin, int64_t end);
  void (*reduce)(const Reduce&, uint32_t* scratch, int64_t begin, int64_t end);
  void (*blend)(const Blend&, int64_t chunk, int64_t begin, int64_t end);
  void (*fill)(const Fill&, int64_t chunk, int64_t begin, int64_t end);
  void (*affine)(const Affine&, int64_t chunk, int64_t begin, int64_t end);
  void (*find_bad)(const Advance&, int64_t chunk, int64_t begin, int64_t end, uint8_t* bad);
  void (*count_on)(const Advance&, const uint8_t* bad, int64_t begin, int64_t end);
  void (*look_up)(const LookUp&, int64_t begin, int64_t end);
  int64_t (*first_outside)(const int64_t* row, int64_t rows, int64_t begin, int64_t end);
  void (*langevin)(const Langevin&, int64_t chunk, int64_t begin, int64_t end);
  void (*kick_drift)(const KickDrift&, int64_t chunk, int64_t begin, int64_t end);
  void (*mala_accept)(const MalaAccept&, int64_t begin, int64_t end);
  void (*squared_norm)(const SquaredNorm&, int64_t begin, int64_t end);
  void (*accept)(const Accept&, int64_t begin, int64_t end);
  void (*evaluate)(const Evaluate&, int64_t begin, int64_t end);
  void (*run)(const Run&, int64_t begin, int64_t end);
  void (*gaussian_kl)(const GaussianKl&, int64_t begin, int64_t end);
  void (*discretised)(const DiscretisedLikelihood&, int64_t begin, int64_t end);
  void (*hash_noise)(uint64_t first, uint64_t count, uint64_t sums[3]);
  void (*mt19937)(uint32_t* x, int64_t count);
  void (*torch_transform)(uint32_t* words, int64_t groups);
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
void langevin(const Kernels&, const Langevin&, int threads);
void kick_drift(const Kernels&, const KickDrift&, int threads);
void mala_accept(const Kernels&, const MalaAccept&, int threads);
void squared_norm(const Kernels&, const SquaredNorm&, int threads);
void accept(const Kernels&, const Accept&, int threads);
void evaluate(const Kernels&, const Evaluate&, int threads);
void run(const Kernels&, const Run&, int threads);
void gaussian_kl(const Kernels&, const GaussianKl&, int threads);
void discretised(const Kernels&, const DiscretisedLikelihood&, int threads);
void hash_noise(const Kernels&, uint64_t first, uint64_t count, uint64_t sums[3], int threads);

// Whether one thread does all of it, in a few microseconds.
bool is_small(const Advance&);
bool is_small(const LookUp&);

// The first of the chains whose row is outside a table of `rows`; `chains` where there is none.
int64_t first_outside(const Kernels&, const int64_t* row, int64_t chains, int64_t rows, int threads);

// Null if this instruction set reproduces known answers of the noise, the clip and the reductions, else what differs.
const char* self_check(const Kernels&);

}  // namespace ulam::cpu
