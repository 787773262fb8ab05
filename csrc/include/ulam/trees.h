// The trees of the No-U-Turn sampler while they grow: what a leaf reads and writes beside the energy's evaluation. The
// sampler, with what every tensor means, is engine/ulam/samplers/mcmc/nuts.py, the readable form of the same
// arithmetic.
#pragma once

#include "ulam/mcmc.h"
#include "ulam/weights.h"

namespace ulam {

constexpr int64_t kTreeLeaves = 1 << 20;           // of a transition; the numbers of its leaves begin at 1
constexpr int kDirectionStage = 3;                 // of a step's draws: tag 0
constexpr int kLeafStage = 3, kDoublingStage = 4;  // of a leaf's draws: tag 2

struct TreeEnd {
  float *x, *v, *score;  // [B, n] each
};

// Where transitions that are done are counted and kept; all pointers but `made` may be null.
struct TreeRecord {
  int64_t* made;                         // [B] transitions; null: none is counted, the caller looks at `done`
  int64_t limit, first;                  // a chain rests at `limit` transitions; those from `first` on count
  int64_t thin, counted, kept;           // draws: every thin-th of those that count, `counted` before this run
  float* draws;                          // [B, kept, n]
  double *energies, *moments;            // [B, kept], [B, 2, n]
  int64_t *depth, *leapfrogs;            // [B, kept]
  bool *diverging, *diverged_now;        // [B, kept], [B]
  double* acceptance;                    // [B], the sum
  int64_t *divergences, *all_leapfrogs;  // [B]
};

// B chains of n elements.
struct Trees {
  static constexpr Sharing sharing = Sharing::kGroups;
  int64_t chains, elements;
  int max_depth;
  float *x, *score;  // [B, n], the state chosen so far
  double* energy;    // [B]
  TreeEnd here, there;
  float *chosen, *chosen_score;                                // [B, n], of the doubling
  double* chosen_energy;                                       // [B]
  float *first, *last, *before;                                // [B, max_depth + 1, n]
  float* sum;                                                  // [B, n]
  double *start, *weight, *doubling_weight, *accepted;         // [B]
  int64_t *depth, *leaps, *leaf, *directions;                  // [B]; of directions bit k is that of doubling k
  bool *live, *fresh, *forward, *moved, *diverged, *done;      // [B]; fresh: a transition is to begin
  const int64_t *seed, *chain;                                 // [B]
  int64_t* draw;                                               // [B], of the current transition
  const float *step, *inverse_temperature, *root_temperature;  // [B]
  const float* scale;                                          // [n] or null
  TreeRecord record;
};

enum TreePart : int { kAfter = 1, kBefore = 2 };  // what comes after an evaluation, and before the next

struct TreeLeap : Trees {
  int parts;
  const double* energy;  // [B], of here.x
  const float* score;    // [B, n]
};

// Leaps of a built-in density until no chain is live.
struct TreeRun : Trees {
  Target target;
};

}  // namespace ulam
