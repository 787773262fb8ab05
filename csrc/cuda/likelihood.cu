// Per-chain sums of a variational bound's terms, one block a chain: the lanes of ulam/reduce.h, four a thread.
#include "likelihood_kernels.h"

#include "launch.h"
#include "ulam/reduce.h"

namespace ulam::cuda {
namespace {

constexpr int kSumThreads = kLanes / 4;

// One element, with what ulam/special.h asks for beyond Scalar.
struct One : Scalar {
  static ULAM_HD f add(f a, f b) { return sub(a, -b); }
  static ULAM_HD f less(f a, f b, f then, f otherwise) { return a < b ? then : otherwise; }
  static ULAM_DEVICE f div(f a, f b) { return __fdiv_rn(a, b); }
};

// Four elements of a tensor of one chain, from element i on; `each` tells whether it has one number an element.
struct Numbers {
  const char* chain;
  bool each;
  Quads::Any quads;

  ULAM_DEVICE Numbers(const float* base, bool each, int64_t b, int64_t elements, uint32_t width)
      : chain(reinterpret_cast<const char*>(base + (each ? b * elements : b))), each(each), quads(kFloat32, width) {}
  ULAM_DEVICE Lanes<4>::f load(uint32_t i, uint32_t left) const {
    if (!each) return Lanes<4>::set(__ldg(reinterpret_cast<const float*>(chain)));
    return quads.widen(quads.load(chain, i, left));
  }
};

// The sum over the chain of term(i, left, four): what elements i to i + 3 add. The first thread has it.
template <class Term>
ULAM_DEVICE double sum_terms(uint32_t elements, const Term& term) {
  __shared__ double lanes[kLanes];
  double sums[4] = {};
#pragma unroll 1
  for (uint32_t i = Quads::first(); i < elements; i += Quads::step()) {
    float terms[4];
    term(i, elements - i, terms);
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k)
      if (k < elements - i) sums[k] += terms[k];
  }
  ULAM_UNROLL
  for (int k = 0; k < 4; ++k) lanes[4 * threadIdx.x + k] = sums[k];
  for (uint32_t width = 2 * blockDim.x; width > 0; width /= 2) {
    __syncthreads();
    for (uint32_t l = threadIdx.x; l < width; l += blockDim.x) lanes[l] += lanes[l + width];
  }
  __syncthreads();
  return lanes[0];
}

}  // namespace

__global__ void __launch_bounds__(kSumThreads) gaussian_kl_chain(const GaussianKl s, uint32_t width) {
  const int64_t b = blockIdx.x, n = s.elements;
  const Numbers mean_a(s.mean_a, true, b, n, width), mean_b(s.mean_b, true, b, n, width);
  const Numbers log_var_a(s.log_var_a, s.each_a, b, n, width), log_var_b(s.log_var_b, s.each_b, b, n, width);
  const double sum = sum_terms(static_cast<uint32_t>(n), [&](uint32_t i, uint32_t left, float* terms) {
    const Lanes<4>::f ma = mean_a.load(i, left), mb = mean_b.load(i, left);
    const Lanes<4>::f va = log_var_a.load(i, left), vb = log_var_b.load(i, left);
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k)
      terms[k] = twice_kl<One>(ma.x[k], mb.x[k], kl_excess<One>(va.x[k], vb.x[k]), reciprocal_exp<One>(vb.x[k]));
  });
  if (threadIdx.x == 0) s.out[b] = 0.5 * sum;
}

__global__ void __launch_bounds__(kSumThreads) discretised_chain(const DiscretisedLikelihood s, uint32_t width) {
  const int64_t b = blockIdx.x, n = s.elements;
  const Numbers x(s.x, true, b, n, width), mean(s.mean, true, b, n, width);
  const Numbers log_scale(s.log_scale, s.each, b, n, width);
  const double sum = sum_terms(static_cast<uint32_t>(n), [&](uint32_t i, uint32_t left, float* terms) {
    const Lanes<4>::f at = x.load(i, left), center = mean.load(i, left), scale = log_scale.load(i, left);
    ULAM_UNROLL
    for (int k = 0; k < 4; ++k) {
      const Bin<One> bin(at.x[k], center.x[k], reciprocal_exp<One>(scale.x[k]), s.half, s.edge);
      terms[k] = s.cdf == kExact ? log_bin<One>(bin) : log_bin_tanh<One>(bin);
    }
  });
  if (threadIdx.x == 0) s.out[b] = sum;
}

namespace {

template <class Arguments>
const char* launched(void (*kernel)(Arguments, uint32_t), const char* name, const Arguments& s, uint32_t width,
                     void* stream) {
  if (s.chains == 0) return nullptr;
  unsigned threads = 32;
  while (threads < kSumThreads && 4 * threads < s.elements) threads *= 2;
  const Plan plan{dim3(static_cast<unsigned>(std::min<int64_t>(s.chains, UINT32_MAX))), dim3(threads), 0};
  const cudaError_t error = launch(kernel, plan, stream, s, width);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "%s: could not launch on %lld chains of %lld elements", name, static_cast<long long>(s.chains),
                 static_cast<long long>(s.elements));
}

Operand element_wise(const float* address, bool each) { return {each ? address : nullptr, kFloat32}; }

}  // namespace

const char* gaussian_kl(const GaussianKl& s, void* stream) {
  const uint32_t width =
      access_width(s.elements, {element_wise(s.mean_a, true), element_wise(s.mean_b, true),
                                element_wise(s.log_var_a, s.each_a), element_wise(s.log_var_b, s.each_b)});
  return launched<GaussianKl>(gaussian_kl_chain, "gaussian_kl", s, width, stream);
}

const char* discretised(const DiscretisedLikelihood& s, void* stream) {
  const uint32_t width = access_width(
      s.elements, {element_wise(s.x, true), element_wise(s.mean, true), element_wise(s.log_scale, s.each)});
  return launched<DiscretisedLikelihood>(discretised_chain, "discretised_log_likelihood", s, width, stream);
}

}  // namespace ulam::cuda
