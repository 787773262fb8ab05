// Whole chains of a small network: their rows one after another, the network evaluated between them.
#pragma once

#include <cstdint>

#include "ulam/operations.h"

namespace ulam {

// Every chain executes `count` rows, each with an evaluation of the network. `step` has the states, the table, the ids,
// the weights of guidance and the network's input; its rows and draws are those of the cursor. A chain at the idle row
// is left alone.
struct Walk {
  Step step;
  int64_t* cursor;  // [6, B]: see ulam/tick.h
  int64_t count;
  int64_t work;                 // multiplications of one evaluation
  const int64_t* code;          // of the network: see kernels/ulam_kernels/networks.py
  const float *data, *packed;   // and its numbers; its weights as kernels/ulam_kernels/cpu/packing.py has them
  const float* row_vectors;     // [rows, row_width]
  const float* chain_vectors;   // [B, chain_width]
  const float* uncond_vectors;  // [B, chain_width], or null: no guidance
  const float* known;           // [B, elements]: what x is after each row that writes, where the mask says; or null
  const uint8_t* mask;          // [elements] of each chain, mask_stride apart
  int64_t mask_stride;
};

// The output of a network, and its energy where it has one, at the states of all chains.
struct NetworkCall {
  int64_t chains, work;
  const int64_t* code;
  const float *data, *packed;
  const float* x;              // [B, inputs]
  const float* row_vector;     // [row_width], of all chains
  const float* chain_vectors;  // [B, chain_width]
  float* out;                  // [B, outputs]
  float* energy;               // [B], or null
};

}  // namespace ulam
