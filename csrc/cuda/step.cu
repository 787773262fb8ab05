// The fused step: one row of the table a chain. See ulam/row.h for what a row does to an element.
//
// The kernels are compiled for the number of registers and, where all is aligned and chains are long, for the types of
// state and model. What a row does (noise, guidance, clip, learned variance) is decided while it runs, by branches that
// are the same for all elements of a chain.
#include "launch.h"
#include "ulam/row.h"

namespace ulam::cuda {

// A row of NaN, for rows that cannot be executed.
struct NanRow {
  uint32_t c[row_width(kMaxRegisters)];
  constexpr NanRow() : c() {
    for (uint32_t& x : c) x = 0x7fc00000u;
  }
};
static __device__ const NanRow kNanRow;

// The coefficients of chain b's row to `c`; its flags are returned. `missing` has the flags of what was not given.
template <int R>
ULAM_DEVICE uint32_t load_row(const Step& s, int64_t b, uint32_t missing, float c[row_width(R)]) {
  const int64_t index = __ldg(s.row + b);
  const bool inside = static_cast<uint64_t>(index) < static_cast<uint64_t>(s.rows);
  uint32_t flags = inside ? static_cast<uint32_t>(__ldg(s.flags + index)) : kWrites;
  const float* from = s.coef + index * row_width(R);
  if (!inside || (flags & missing)) {
    flags &= kWrites;
    from = reinterpret_cast<const float*>(kNanRow.c);
  }
  ULAM_UNROLL
  for (int k = 0; k < row_width(R); ++k) c[k] = __ldg(from + k);
  return flags;
}

// Executes one row on elements of chain b. Layout says which elements a thread holds, S and M how it reaches those of
// the state and of the model's output.
template <class Layout, class S, class M, template <class> class Fixed, int R>
struct ChainStep {
  static constexpr int N = Layout::lanes;
  using V = Lanes<N>;
  using f = typename V::f;

  const Step& s;
  const Row<R>& row;
  const S state;
  const M model;
  const uint32_t width;
  char* r0;
  const char *first, *second;  // the model's output that is read, and the one mixed into it by guidance
  int64_t register_bytes, b;
  bool mixes;
  float weight;
  Stream stream;
};

}  // namespace ulam::cuda
