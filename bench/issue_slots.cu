// What a wide product of integers costs beside other instructions: issue slots of one scheduler, by clock64.
//
//   nvcc -std=c++17 -O3 -arch=sm_90 bench/issue_slots.cu -o issue_slots && ./issue_slots
//
// Every thread repeats groups of independent instructions: `product` (none, IMAD, IMAD.HI or IMAD.WIDE), some FFMA and
// some LOP3. An FFMA should take 1 slot, a LOP3 1 of them and 2 clocks of its pipe; what a group takes beyond those is
// the product's.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <vector>

enum Product { kNone, kLow, kHigh, kWide };
constexpr int kGroups = 8, kThreads = 256, kBlocksAnSm = 4, kIterations = 2000;

struct Span {
  long long begin, end;
  uint32_t sm;
};

template <Product product, int ffma, int lop3>
__global__ void __launch_bounds__(kThreads) repeat(uint32_t* out, Span* spans, uint32_t multiplier) {
  uint32_t a[kGroups], l[kGroups];
  float f[kGroups];
  for (int i = 0; i < kGroups; ++i) {
    a[i] = threadIdx.x * 7 + i + multiplier;
    l[i] = threadIdx.x + i * multiplier;
    f[i] = static_cast<float>(i + threadIdx.x);
  }
  __syncthreads();
  const long long begin = clock64();
#pragma unroll 1
  for (int k = 0; k < kIterations; ++k) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      if (product == kLow) asm volatile("mul.lo.u32 %0, %0, %1;" : "+r"(a[i]) : "r"(multiplier));
      if (product == kHigh) asm volatile("mul.hi.u32 %0, %0, %1;" : "+r"(a[i]) : "r"(multiplier));
      if (product == kWide) {
        uint64_t p;
        asm volatile("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a[i]), "r"(multiplier));
        a[i] = static_cast<uint32_t>(p >> 32);
      }
#pragma unroll
      for (int n = 0; n < ffma; ++n) asm volatile("fma.rn.f32 %0, %0, %0, 0f3F8CCCCD;" : "+f"(f[(i * ffma + n) % 8]));
#pragma unroll
      for (int n = 0; n < lop3; ++n)
        asm volatile("lop3.b32 %0, %0, %1, %2, 0x96;"
                     : "+r"(l[(i * lop3 + n) % 8])
                     : "r"(l[(i * lop3 + n + 1) % 8]), "r"(l[(i * lop3 + n + 3) % 8]));
    }
  }
  const long long end = clock64();
  uint32_t sum = 0;
  for (int i = 0; i < kGroups; ++i) sum ^= a[i] ^ l[i] ^ __float_as_uint(f[i]);
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
  if (threadIdx.x == 0) {
    uint32_t sm;
    asm("mov.u32 %0, %%smid;" : "=r"(sm));
    spans[blockIdx.x] = {begin, end, sm};
  }
}

// The median over the multiprocessors: clocks from their first block's begin to their last block's end, by group.
template <Product product, int ffma, int lop3>
void measure(const char* name, int sms) {
  const int blocks = sms * kBlocksAnSm;
  uint32_t* out;
  Span* spans;
  cudaMalloc(&out, sizeof(uint32_t) * blocks * kThreads);
  cudaMalloc(&spans, sizeof(Span) * blocks);
  for (int run = 0; run < 2; ++run) repeat<product, ffma, lop3><<<blocks, kThreads>>>(out, spans, 0xD2511F53u);
  std::vector<Span> host(blocks);
  const cudaError_t error = cudaMemcpy(host.data(), spans, sizeof(Span) * blocks, cudaMemcpyDeviceToHost);
  cudaFree(out);
  cudaFree(spans);
  if (error != cudaSuccess) {
    std::printf("%s: %s\n", name, cudaGetErrorString(error));
    std::exit(1);
  }
  std::map<uint32_t, std::vector<Span>> by_sm;
  for (const Span& span : host) by_sm[span.sm].push_back(span);
  std::vector<double> slots;
  for (const auto& [sm, own] : by_sm) {
    long long begin = own[0].begin, end = own[0].end;
    for (const Span& span : own) begin = std::min(begin, span.begin), end = std::max(end, span.end);
    const double warps = own.size() * kThreads / 32 / 4.0;  // of a scheduler
    slots.push_back((end - begin) / (warps * kGroups * kIterations));
  }
  std::sort(slots.begin(), slots.end());
  std::printf("%-10s + %d FFMA + %d LOP3: %6.2f clocks\n", name, ffma, lop3, slots[slots.size() / 2]);
}

template <Product product>
void measure(const char* name, int sms) {
  measure<product, 0, 0>(name, sms);
  measure<product, 2, 0>(name, sms);
  measure<product, 4, 0>(name, sms);
  measure<product, 8, 0>(name, sms);
  measure<product, 0, 2>(name, sms);
  measure<product, 4, 2>(name, sms);
}

int main() {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return std::puts("no GPU"), 1;
  std::printf("%s: clocks of a scheduler for a group\n", properties.name);
  measure<kNone>("-", properties.multiProcessorCount);
  measure<kLow>("IMAD", properties.multiProcessorCount);
  measure<kHigh>("IMAD.HI", properties.multiProcessorCount);
  measure<kWide>("IMAD.WIDE", properties.multiProcessorCount);
}
