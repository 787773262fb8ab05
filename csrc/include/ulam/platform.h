// What differs between a host compiler and nvcc, in one place.
#pragma once

#if defined(__CUDACC__)
#define ULAM_HD __host__ __device__ __forceinline__
#else
#define ULAM_HD inline __attribute__((always_inline))
#endif

#if defined(__CUDACC__)
#define ULAM_UNROLL _Pragma("unroll")
#else
#define ULAM_UNROLL _Pragma("GCC unroll 16")
#endif
