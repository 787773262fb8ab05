// The native CPU backend: what the bindings call, and what one instruction set must provide.
#pragma once

#include <cstdint>

namespace ulam::cpu {

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// B chains of n elements. Register r of chain b starts at state + (r * B + b) * n. Optional pointers may be
// null.
struct Step {
  int64_t chains, elements;
  int registers;
  void* state;
  DType state_type;
  const float* coef;     // [rows, row_width(registers)]
  const int32_t* flags;  // [rows]
  int64_t rows;
  const int64_t* row;  // [B]
  const void* model;   // [B, model_stride], the first n of each chain are m, the next n (if any) v
  const void* uncond;
  DType model_type;
  int64_t model_stride;
  const float* guidance;  // [B]
  const int64_t *seed, *chain, *draw;
  const float* noise;  // [B, n]: used in place of the generated noise
  void* net_in;        // [B, n]
  DType net_type;
};

struct Fill {
  int64_t chains, elements, offset;
  void* out;
  DType type;
  const int64_t *seed, *chain, *draw;
  uint32_t tag;
  float scale;
};

struct Affine {
  int64_t chains, elements;
  const void *x, *m;
  void* out;
  DType x_type, m_type, out_type;
  const float *a, *b;  // [B]
};

// One instruction set. An operation is cut into units of one chain and at most `chunk` elements; `run`
// executes the units [begin, end). hash_noise adds the noise standard's checksums of the words [first, first
// + count).
struct Kernels {
  const char* name;
  void (*step)(const Step&, int64_t chunk, int64_t begin, int64_t end);
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
void fill(const Kernels&, const Fill&, int threads);
void affine(const Kernels&, const Affine&, int threads);
void hash_noise(const Kernels&, uint64_t first, uint64_t count, uint64_t sums[3], int threads);

// Null if this instruction set reproduces the noise standard's known answers, else what differs.
const char* self_check(const Kernels&);

}  // namespace ulam::cpu
