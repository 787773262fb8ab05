// Sums over two tensors of a chain, in the lanes of ulam/reduce.h: a block a chain, four lanes a thread.
#include "launch.h"
#include "team.h"

namespace ulam::cuda {

constexpr int kMomentThreads = kLanes / 4;

template <bool aligned>
__global__ void __launch_bounds__(kMomentThreads) moments_chain(const Moments s, uint32_t width) {
  constexpr int in_flight = 2;  // quads of each operand
  __shared__ double lanes[Moments::sums][kLanes];
  const Quads::Any quads(kFloat32, width);
  const int64_t start = static_cast<int64_t>(blockIdx.x) * s.elements;
  const char* const x_chain = reinterpret_cast<const char*>(s.x + start);
  const char* const y_chain = reinterpret_cast<const char*>(s.y + start);
  double sum[Moments::sums][4] = {};
#pragma unroll 1
  for (Places at{Quads::first(), Quads::step(), static_cast<uint32_t>(s.elements)}; at.inside(0);
       at.first += in_flight * at.apart) {
    Raw<4> x_raw[in_flight], y_raw[in_flight];
    load_quads<aligned>(quads, x_chain, at, x_raw);
    load_quads<aligned>(quads, y_chain, at, y_raw);
    ULAM_UNROLL
    for (int k = 0; k < in_flight; ++k) {
      if (!at.inside(k)) continue;
      ULAM_UNROLL
      for (int j = 0; j < 4; ++j) {
        if (j >= at.left(k)) continue;
        const double x = Scalar::as_float(x_raw[k].w[j]), y = Scalar::as_float(y_raw[k].w[j]);
        sum[0][j] += x;
        sum[1][j] += y;
        sum[2][j] = __fma_rn(x, x, sum[2][j]);
        sum[3][j] = __fma_rn(x, y, sum[3][j]);
        sum[4][j] = __fma_rn(y, y, sum[4][j]);
      }
    }
  }
  ULAM_UNROLL
  for (int k = 0; k < Moments::sums; ++k) ULAM_UNROLL
  for (int j = 0; j < 4; ++j) lanes[k][4 * threadIdx.x + j] = sum[k][j];
  for (uint32_t half = 2 * blockDim.x; half > 0; half /= 2) {
    __syncthreads();
    for (uint32_t l = threadIdx.x; l < half; l += blockDim.x) {
      ULAM_UNROLL
      for (int k = 0; k < Moments::sums; ++k) lanes[k][l] += lanes[k][l + half];
    }
  }
  __syncthreads();
  if (threadIdx.x < Moments::sums)
    s.out[static_cast<int64_t>(blockIdx.x) * Moments::sums + threadIdx.x] = lanes[threadIdx.x][0];
}

const char* moments(const Moments& s, void* stream) {
  if (s.chains == 0) return nullptr;
  const uint32_t width = access_width(s.elements, {s.x, s.y});
  const ChainPlan plan = plan_blocks(s.chains, 1, threads_alone(s.elements, kMomentThreads));
  const cudaError_t error = launch(width == 4 ? moments_chain<true> : moments_chain<false>, plan, stream, s, width);
  if (error == cudaSuccess) return nullptr;
  return failure(error, "moments: could not launch on %lld chains of %lld elements", static_cast<long long>(s.chains),
                 static_cast<long long>(s.elements));
}

}  // namespace ulam::cuda
