// Shared by the CUDA kernels: dtypes, vectors of 16 bytes, launches. No torch header here or in any kernel.
//
// cudaLaunchKernelEx launches the kernels, rather than angle brackets, so that any C++ compiler accepts them.
// tests/cuda runs the kernels on the CPU, one thread after the other. So no kernel may synchronise its threads.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../kernels.h"

namespace igfast::cuda {

constexpr int64_t kThreads = 256;  // of a block
constexpr int64_t kVectorBytes = 16;
constexpr int kRowsAtOnce = 4;  // that a thread loads before it uses the first, so that a row need not wait for its own

template <typename T>
constexpr int kLanes = static_cast<int>(kVectorBytes / sizeof(T));

// The type in which numbers of a dtype are computed and accumulated.
template <typename T>
struct MathOf {
  using type = float;
};
template <>
struct MathOf<double> {
  using type = double;
};
template <typename T>
using Math = typename MathOf<T>::type;

__device__ inline float widened(__half v) { return __half2float(v); }
__device__ inline float widened(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float widened(float v) { return v; }
__device__ inline double widened(double v) { return v; }

template <typename T>
__device__ inline T narrowed(Math<T> v) {
  return v;
}
template <>
__device__ inline __half narrowed<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ inline __nv_bfloat16 narrowed<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// Loads and stores of n consecutive elements, in accesses of at most 16 bytes. The address must be aligned to these.
template <size_t bytes>
struct WordOf {
  using type = uint4;
};
template <>
struct WordOf<1> {
  using type = uint8_t;
};
template <>
struct WordOf<2> {
  using type = uint16_t;
};
template <>
struct WordOf<4> {
  using type = uint32_t;
};
template <>
struct WordOf<8> {
  using type = uint64_t;
};

template <int n, typename T>
__device__ inline void load(T (&lanes)[n], const T* from) {
  using Word = typename WordOf<sizeof(lanes)>::type;
  static_assert(sizeof(lanes) % sizeof(Word) == 0);
  for (size_t i = 0; i < sizeof(lanes); i += sizeof(Word)) {
    const Word word = *reinterpret_cast<const Word*>(reinterpret_cast<const char*>(from) + i);
    memcpy(reinterpret_cast<char*>(lanes) + i, &word, sizeof(Word));
  }
}

// Loads what no thread of the kernel writes: the compiler may load it before stores that come first.
template <typename Word>
__device__ inline Word constant(const Word* from) {
  return __ldg(from);
}

template <int n, typename T>
__device__ inline void load_constant(T (&lanes)[n], const T* from) {
  using Word = typename WordOf<sizeof(lanes)>::type;
  static_assert(sizeof(lanes) % sizeof(Word) == 0);
  for (size_t i = 0; i < sizeof(lanes); i += sizeof(Word)) {
    const Word word = constant(reinterpret_cast<const Word*>(reinterpret_cast<const char*>(from) + i));
    memcpy(reinterpret_cast<char*>(lanes) + i, &word, sizeof(Word));
  }
}

template <int n, typename T>
__device__ inline void store(T* to, const T (&lanes)[n]) {
  using Word = typename WordOf<sizeof(lanes)>::type;
  static_assert(sizeof(lanes) % sizeof(Word) == 0);
  for (size_t i = 0; i < sizeof(lanes); i += sizeof(Word)) {
    Word word;
    memcpy(&word, reinterpret_cast<const char*>(lanes) + i, sizeof(Word));
    *reinterpret_cast<Word*>(reinterpret_cast<char*>(to) + i) = word;
  }
}

// The number of a cell in a pooling window, as wide as an element of 16 or 32 bits, so that one mask selects both.
template <typename T>
using Number = std::conditional_t<sizeof(T) == 2, uint16_t, uint32_t>;

// Returns two neighbouring elements as one.
__device__ inline __half2 pair_at(const __half* from) { return {from[0], from[1]}; }
__device__ inline __nv_bfloat162 pair_at(const __nv_bfloat16* from) { return {from[0], from[1]}; }

// Two neighbouring elements of 16 bits in the place where one of 32 bits is.
template <typename T>
using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;

// Returns the bits of two elements where their bytes of four, `at` and at + 1, are all ones, and zeros elsewhere.
__device__ inline unsigned where(unsigned bytes, int at, unsigned pair) {
  return pair & __byte_perm(bytes, 0, at == 0 ? 0x1100 : 0x3322);
}

template <typename T>
__device__ inline unsigned sum_of_pairs(unsigned a, unsigned b) {
  Pair<T> one, other;
  memcpy(&one, &a, sizeof(a));
  memcpy(&other, &b, sizeof(b));
  const Pair<T> sum = __hadd2(one, other);
  unsigned bits;
  memcpy(&bits, &sum, sizeof(bits));
  return bits;
}

// Copies the elements of a pair whose 16 bits are set in a mask.
template <typename T>
__device__ inline void select(T* to, const T* from, unsigned taken) {
  static_assert(2 * sizeof(T) == sizeof(unsigned));
  unsigned before, after;
  memcpy(&before, to, sizeof(before));
  memcpy(&after, from, sizeof(after));
  before = (after & taken) | (before & ~taken);
  memcpy(to, &before, sizeof(before));
}

// Returns n / by. A 64-bit division takes longer than all the rest of a thread.
__device__ inline int64_t quotient(int64_t n, int64_t by) {
  if (((n | by) >> 32) == 0) return static_cast<uint32_t>(n) / static_cast<uint32_t>(by);
  return n / by;
}
__device__ inline int32_t quotient(int32_t n, int32_t by) {
  return static_cast<int32_t>(static_cast<uint32_t>(n) / static_cast<uint32_t>(by));
}

__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * static_cast<int64_t>(blockDim.x) + static_cast<int64_t>(threadIdx.x);
}

// Loads n features of an example's baseline, from the feature `first`.
template <int n, typename T>
__device__ inline void load_baseline(T (&lanes)[n], const Baseline& baseline, int64_t example, int64_t first) {
  const auto* data = static_cast<const T*>(baseline.data);
  if (baseline.is_number) {
    T one[1];
    load_constant(one, data);
    for (int k = 0; k < n; ++k) lanes[k] = one[0];
  } else {
    load_constant(lanes, data + example * baseline.stride + first);
  }
}

// Stops the device unless 0 <= index < size. An assert would call a function: it takes 26 registers of 74, and the
// compiler loads nothing before it that comes after it.
__device__ inline void check_index(int64_t index, int64_t size) {
  if (static_cast<uint64_t>(index) >= static_cast<uint64_t>(size)) __trap();
}

inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0; }

inline bool is_aligned(const Baseline& baseline) { return baseline.is_number || is_aligned(baseline.data); }

inline int64_t n_blocks(int64_t n_threads) { return (n_threads + kThreads - 1) / kThreads; }

template <typename... Parameters, typename... Arguments>
const char* launch(void (*kernel)(Parameters...), int64_t blocks_x, int64_t blocks_y, void* stream,
                   Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks_x), static_cast<unsigned>(blocks_y));
  config.blockDim = dim3(static_cast<unsigned>(kThreads));
  config.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...);
  if (error == cudaSuccess) return nullptr;
  (void)cudaGetLastError();  // clears the error, which PyTorch's next launch would report again
  return cudaGetErrorString(error);
}

// Launches a kernel with one thread per stretch of features, which loops over items. With few stretches, the items are
// split between threads, so that there are 1024 blocks, 8 per multiprocessor of a large device.
template <typename Args>
const char* launch_parts(void (*kernel)(Args, int64_t, int64_t), const Args& args, int64_t n_stretches, int64_t n_items,
                         void* stream) {
  constexpr int64_t enough_blocks = 1024;
  const int64_t blocks = n_blocks(n_stretches);
  const int64_t parts = std::min(n_items, (enough_blocks + blocks - 1) / blocks);
  const int64_t items_each = (n_items + parts - 1) / parts;
  return launch(kernel, blocks, (n_items + items_each - 1) / items_each, stream, args, n_stretches, items_each);
}

// Calls `of(T{})` with the type that a dtype names.
template <typename Of>
const char* for_dtype(DType dtype, const Of& of) {
  switch (dtype) {
    case DType::kHalf: return of(__half{});
    case DType::kBFloat16: return of(__nv_bfloat16{});
    case DType::kFloat: return of(float{});
    case DType::kDouble: return of(double{});
  }
  return "not a dtype";
}

}  // namespace igfast::cuda
