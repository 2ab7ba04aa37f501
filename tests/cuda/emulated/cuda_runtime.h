// As much of CUDA's runtime as csrc/cuda uses, on the CPU: a launch runs its threads one after the other. In an order
// that no device has, so that a kernel which relies on one is found out.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __launch_bounds__(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1) : x(x), y(y) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  unsigned result = 0;
  for (int k = 0; k < 4; ++k) {
    const unsigned from = selector >> 4 * k & 7;
    result |= ((from < 4 ? x >> 8 * from : y >> 8 * (from - 4)) & 0xff) << 8 * k;
  }
  return result;
}
inline unsigned __vcmpeq4(unsigned a, unsigned b) {
  unsigned result = 0;
  for (int k = 0; k < 4; ++k) result |= ((a ^ b) >> 8 * k & 0xff) == 0 ? 0xffu << 8 * k : 0;
  return result;
}
inline void __trap() { std::abort(); }
template <typename Word>
Word __ldg(const Word* from) {
  return *from;
}

inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline double rsqrt(double v) { return 1 / std::sqrt(v); }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using cudaStream_t = void*;
enum cudaError_t : int { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration argument"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... given) {
  if (config->gridDim.x == 0 || config->gridDim.y == 0 || config->blockDim.x > 1024) return cudaErrorInvalidValue;
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  for (unsigned y = gridDim.y; y-- > 0;) {
    for (unsigned x = gridDim.x; x-- > 0;) {
      for (unsigned thread = blockDim.x; thread-- > 0;) {
        blockIdx = dim3(x, y);
        threadIdx = dim3(thread, 0);
        kernel(given...);
      }
    }
  }
  return cudaSuccess;
}
