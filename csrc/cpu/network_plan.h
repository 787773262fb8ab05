// A network as the loops of one thread want it: where its values lie, what is computed together.
//
// The code is that of kernels/ulam_kernels/networks.py; packed weights are those of
// kernels/ulam_kernels/cpu/packing.py.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "ulam/activations.h"
#include "ulam/walk.h"

namespace ulam::cpu {
namespace {

// The columns of packed weights that lie together for every k, in blocks and in panels. A panel is what a few chains
// want to read at once: with AVX-512 more.
constexpr int kNarrow = 12;
template <class V>
constexpr int kPanel = V::width >= 16 ? 128 : 32;

constexpr int kMostInstructions = 128;

enum class Kind : int { kLinear, kUnary, kBinary, kLayerNorm, kLayerNormGradient };
// The order is that of kernels/ulam_kernels/networks.py: bf16 panels; bf16 products of pairs.
enum class Precision : int { kFloat32, kBf16, kBf16Dot };
enum class From : int { kNone = -1, kValue, kRow, kChain, kConstant };

struct Operand {
  From from;
  int64_t index;  // of a value: its slot
};

struct Item {
  Kind kind;
  int width, out, value, second;  // slots; second: -1, or the second input of a Linear
  int depth[2];                   // the widths of its inputs
  int function;                   // of a Unary or a Binary, or what follows a Linear
  float parameter;                // eps of a LayerNorm
  const float *narrow[2], *panels[2];
  Operand a, b;
};

class Plan {
 public:
  Plan(const int64_t* code, const float* data, const float* packed, int panel)
      : data_(data), packed_(packed), panel_(panel) {
    inputs = static_cast<int>(code[0]);
    row_width = code[1];
    chain_width = code[2];
    precision = static_cast<Precision>(code[6]);
    const int count = static_cast<int>(code[5]), result = static_cast<int>(code[3]);
    const int64_t *const widths = code + 8, *const words = widths + count + 1;
    const auto word = [=](int k) { return words + k * 12; };
    outputs = static_cast<int>(widths[result]);
    for (int v = 0; v <= count; ++v) max_width = widths[v] > max_width ? static_cast<int>(widths[v]) : max_width;
    find_last_uses(count, result, static_cast<int>(code[7]), word);
    take(0);
    for (int k = 0; k < count; ++k) {
      const int64_t* const w = word(k);
      Item item = read(w, widths);
      int64_t out = w[1];
      const bool joins = item.kind == Kind::kLinear && k + 1 < count && word(k + 1)[0] == 1 && word(k + 1)[2] == out &&
                         last_[out] == k + 1 && uses_[out] == 1;
      if (joins) {
        item.function = static_cast<int>(word(k + 1)[3]);
        item.parameter = data_[word(k + 1)[4]];
        out = word(k + 1)[1];
      }
      item.out = take(out);
      items[size++] = item;
      for (int v = 0; v <= count; ++v)
        if (slot_[v] >= 0 && last_[v] <= k + joins && v != out) release(v);
      if (last_[out] < 0) release(static_cast<int>(out));  // which nothing reads
      k += joins;
    }
    output = slot_[result];
    energy = code[7] < 0 ? -1 : slot_[code[7]];
  }

  int size = 0, slots = 0, output = 0, energy = -1, inputs = 0, outputs = 0, max_width = 1;
  int64_t row_width = 0, chain_width = 0;
  Precision precision = Precision::kFloat32;
  Item items[kMostInstructions];
  const float* constants() const { return data_; }
  // Vectors of max_width that an evaluation needs: the slots, one to keep an output in, and the words of two inputs.
  int room() const { return slots + 1 + (precision == Precision::kBf16Dot ? 2 : 0); }

 private:
  template <class Word>
  void find_last_uses(int count, int result, int energy, const Word& word) {
    for (int v = 0; v <= count; ++v) last_[v] = slot_[v] = -1, uses_[v] = 0;
    const auto use = [&](int64_t v, int k) { last_[v] = k, ++uses_[v]; };
    for (int k = 0; k < count; ++k) {
      const int64_t* const w = word(k);
      switch (static_cast<Kind>(w[0])) {
        case Kind::kLinear:
          use(w[2], k);
          if (w[3] >= 0) use(w[3], k);
          break;
        case Kind::kBinary:
          if (w[3] == 0) use(w[4], k);
          if (w[5] == 0) use(w[6], k);
          break;
        case Kind::kLayerNormGradient:
          if (w[6] == 0) use(w[7], k);
          [[fallthrough]];
        default:
          use(w[2], k);
      }
    }
    use(0, count + 1);  // read again by the next evaluation
    use(result, count + 1);
    if (energy >= 0) use(energy, count + 1);
  }

  Item read(const int64_t* w, const int64_t* widths) {
    Item item{};
    item.kind = static_cast<Kind>(w[0]);
    item.width = static_cast<int>(widths[w[1]]);
    item.second = -1;
    item.a.from = item.b.from = From::kNone;
    switch (item.kind) {
      case Kind::kLinear:
        item.value = slot_[w[2]];
        if (w[3] >= 0) item.second = slot_[w[3]];
        for (int i = 0; i < 2; ++i) {
          if (w[2 + i] < 0) break;
          item.depth[i] = static_cast<int>(widths[w[2 + i]]);
          const int words = precision == Precision::kBf16Dot ? (item.depth[i] + 1) / 2 : item.depth[i];
          item.narrow[i] = next(words, item.width, kNarrow);
          item.panels[i] = next(words, item.width, panel_, precision == Precision::kBf16 ? 2 : 1);
        }
        item.a = operand(w + 6);
        item.b = operand(w + 8);
        break;
      case Kind::kUnary:
        item.value = slot_[w[2]];
        item.function = static_cast<int>(w[3]);
        item.parameter = data_[w[4]];
        break;
      case Kind::kBinary:
        item.function = static_cast<int>(w[2]);
        item.a = operand(w + 3);
        item.b = operand(w + 5);
        break;
      default:
        item.value = slot_[w[2]];
        item.parameter = data_[w[3]];
        item.a = operand(w + 4);
        item.b = operand(w + 6);
    }
    return item;
  }

  Operand operand(const int64_t* w) const {
    const From from = static_cast<From>(w[0]);
    return {from, from == From::kValue ? slot_[w[1]] : w[1]};
  }

  // shorter: how many weights a float holds.
  const float* next(int64_t depth, int64_t width, int64_t columns, int64_t shorter = 1) {
    const float* const at = packed_;
    packed_ += (((width + columns - 1) / columns * columns * depth / shorter) + 15) / 16 * 16;
    return at;
  }

  int take(int64_t value) {
    int slot = 0;
    while (slot < slots && taken_[slot]) ++slot;
    if (slot == slots) ++slots;
    taken_[slot] = true;
    return slot_[value] = slot;
  }
  void release(int value) {
    taken_[slot_[value]] = false;
    slot_[value] = -1;
  }

  const float *data_, *packed_;
  const int panel_;
  int last_[kMostInstructions + 1], uses_[kMostInstructions + 1], slot_[kMostInstructions + 1];
  bool taken_[kMostInstructions + 1] = {};
};

}  // namespace
}  // namespace ulam::cpu
