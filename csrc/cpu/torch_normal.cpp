// The order of torch's draws: which words of mt19937 go where, and the state that they leave.
#include "torch_normal.h"

#include <algorithm>

#include "threads.h"

namespace ulam::cpu {
namespace {

constexpr int kBlock = 624;  // the words of mt19937's state
constexpr int kAgain = 16;   // the values that torch makes anew at the end of an uneven size

bool understood(const TorchState& s) {
  if (s.seeded != 1 || s.next > kBlock) return false;
  return s.left + static_cast<int64_t>(s.next) == kBlock + 1 || (s.left == 1 && s.next == 0);
}

// Draws out[0 .. count) and, if `uneven`, again[0 .. kAgain), which is written in any case. Where x[0 .. 624) is the
// state and x goes on as mt19937 does, the first word to draw is x[next]. The window is x from `base` on, far enough
// for the whole block of the last word drawn: torch's state is that block.
void draw(const Kernels& k, TorchState& s, uint32_t* out, int64_t count, uint32_t* again, bool uneven) {
  uint32_t window[3 * kBlock + kAgain];
  std::copy(s.state, s.state + kBlock, window);
  k.mt19937(window, 2 * kBlock + kAgain);
  const int64_t next = s.left == 1 ? kBlock : static_cast<int64_t>(s.next);
  const int64_t known = std::min<int64_t>(count, 2 * kBlock - next);
  std::copy(window + next, window + next + known, out);
  int64_t base = 0;
  if (known < count) {
    k.mt19937(out + known - kBlock, count - known);
    std::copy(out + count - kBlock, out + count, window);
    k.mt19937(window, 2 * kBlock + kAgain);
    base = next + count - kBlock;
  }
  const uint32_t* const behind = window + next + count - base;
  std::copy(behind, behind + kAgain, again);
  const int64_t drawn = next + count + (uneven ? kAgain : 0), block = (drawn - 1) / kBlock * kBlock;
  std::copy(window + block - base, window + block - base + kBlock, s.state);
  s.next = static_cast<uint64_t>(drawn - block);
  s.left = static_cast<int32_t>(kBlock + 1 - (drawn - block));
}

}  // namespace

bool torch_normal(const Kernels& k, float* out, int64_t count, TorchState& state, int64_t state_bytes, int threads) {
  if (!k.torch_transform || count < kAgain || state_bytes != sizeof state || !understood(state)) return false;
  uint32_t* const words = reinterpret_cast<uint32_t*>(out);
  uint32_t again[kAgain];
  const bool uneven = count % 16 != 0;
  draw(k, state, words, count, again, uneven);
  const int64_t groups = count / 16;
  const int parts = count <= kSerialElements ? 1 : std::max(threads, 1);
#pragma omp parallel for num_threads(parts) if (parts > 1) schedule(static, 1)
  for (int part = 0; part < parts; ++part) {
    const int64_t begin = groups * part / parts, end = groups * (part + 1) / parts;
    k.torch_transform(words + 16 * begin, end - begin);
  }
  if (uneven) {
    std::copy(again, again + kAgain, words + count - kAgain);
    k.torch_transform(words + count - kAgain, 1);
  }
  return true;
}

}  // namespace ulam::cpu
