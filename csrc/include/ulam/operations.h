// The operations' arguments, as every native backend takes them: sizes and raw pointers.
#pragma once

#include <cstdint>

namespace ulam {

enum DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };  // kFloat64: of an Advance alone

// Which tensors of a Step have their channels innermost in memory: model and uncond are [B, pixels, model_stride /
// pixels], m, then v, of a pixel side by side; net_in is [B, pixels, C].
enum Last : int { kModelLast = 1, kNetLast = 2 };

// What the threads may share out: pieces of a chain; whole chains; or groups of as many chains as a vector has lanes,
// with pieces of long chains (kSideBySide) or without (kGroups).
enum class Sharing { kPieces, kChains, kSideBySide, kGroups };

// B chains of n elements, n <= 2^30. Register r of chain b starts at state + (r * B + b) * n. Optional pointers may be
// null.
struct Step {
  static constexpr Sharing sharing = Sharing::kPieces;
  int64_t chains, elements;
  int registers;
  void* state;
  DType state_type;
  const float* coef;     // [rows, row_width(registers)]
  const int32_t* flags;  // [rows]
  int64_t rows;
  const int64_t* row;  // [B]
  const void* model;   // [B, model_stride], the first n of each chain are m, the next n (if any) v; may be state
  const void* uncond;
  DType model_type;
  int64_t model_stride;
  const float* guidance;  // [B]
  const int64_t *seed, *chain, *draw;
  const float* noise;  // [B, n]: used in place of the generated noise
  void* net_in;        // [B, n]
  DType net_type;
  const float* scales;  // [B, 4]: lo, hi, D_scale, z_scale of chains whose row has a reduction
  const void* source;   // [B, n] of the state's type: r_0 is read from here; `state` where it is in place
  int64_t pixels;       // n / C where `last` is not 0
  int last;             // of Last
  int64_t* squares;     // [B]: the squares of each chain's noise are added, see ulam/squares.h
};

// What the scales of such rows are computed from: a step without its outputs.
struct Reduce {
  Step step;
  float* out;  // [B, 4]
};

// r_0 of B chains becomes k = a known + b z where the mask is 1; z and the rest as in Step.
struct Blend {
  static constexpr Sharing sharing = Sharing::kPieces;
  int64_t chains, elements;
  void* state;  // [B, n]
  DType state_type;
  const float *known, *mask;  // [B, n]
  const float *a, *b;         // [B], or tables [rows] where there is a `row`
  const int64_t *seed, *chain, *draw;
  const float* noise;
  void* net_in;
  DType net_type;
  const float* c_next;  // as a and b
  const int64_t* row;   // [B]
  int64_t rows;
  int64_t stage;  // added to draw
};

struct Fill {
  static constexpr Sharing sharing = Sharing::kPieces;
  int64_t chains, elements, offset;
  void* out;
  DType type;
  const int64_t *seed, *chain, *draw;
  uint32_t tag;
  float scale;
};

struct Affine {
  static constexpr Sharing sharing = Sharing::kPieces;
  int64_t chains, elements;
  const void *x, *m;
  void* out;
  DType x_type, m_type, out_type;
  const float *a, *b;  // [B]
};

// The sums over a chain of x, y, x^2, x y and y^2, in the lanes of ulam/reduce.h. A product of fp32 is exact in fp64.
struct Moments {
  static constexpr Sharing sharing = Sharing::kChains;
  static constexpr int sums = 5;
  int64_t chains, elements;
  const float *x, *y;
  double* out;  // [B, sums]
};

// out[b] = times[row[b]]. With a `weight`, it is guidance where interval[0] <= out <= interval[1], and 1 elsewhere.
struct LookUp {
  int64_t chains, rows;
  const void* times;                 // [rows]
  bool whole;                        // times are int64, else float32
  const int64_t* row;                // [B]
  void* out;                         // [B]
  const float *guidance, *interval;  // [B], [2, B]
  float* weight;                     // [B]
};

// Every chain goes on to its next row, unless something in its `elements` is not finite: see ulam/tick.h.
struct Advance {
  int64_t chains, elements;
  int64_t* cursor;  // [6, B]: row, draw, row_advance, draw_advance, failed, parts
  int64_t* now;     // [2, B]: row, draw
  const void *model, *uncond;
  DType type;
  int64_t model_stride, uncond_stride;  // from chain to chain, in elements; a chain's own lie together
  const float* guidance;                // [B]
};

}  // namespace ulam

// The operations of both native backends, those of mcmc.h and likelihood.h included: X(name, arguments). The backends'
// declarations and the functions that Python sees are generated from this list. The shared ones are those whose units
// the CPU's threads share out: see Sharing.
#define ULAM_SHARED_OPERATIONS(X) \
  X(step, Step)                   \
  X(blend, Blend)                 \
  X(fill_normal, Fill)            \
  X(affine, Affine)               \
  X(moments, Moments)             \
  X(langevin, Langevin)           \
  X(kick_drift, KickDrift)        \
  X(mala_accept, MalaAccept)      \
  X(squared_norm, SquaredNorm)    \
  X(accept, Accept)               \
  X(evaluate, Evaluate)           \
  X(run, Run)                     \
  X(gaussian_kl, GaussianKl)      \
  X(discretised_log_likelihood, DiscretisedLikelihood)

// Shared ones of the CPU alone; elsewhere the same arithmetic is made of other operations. See trees.h.
#define ULAM_CPU_OPERATIONS(X) \
  X(tree_leap, TreeLeap)       \
  X(tree_run, TreeRun)

#define ULAM_OPERATIONS(X)  \
  ULAM_SHARED_OPERATIONS(X) \
  X(reduce, Reduce)         \
  X(look_up, LookUp)        \
  X(advance, Advance)
