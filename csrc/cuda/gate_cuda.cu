// Piecewise linear activations and their gradients, one bit per element between the two. A thread has eight neighbours,
// and bit k of byte j belongs to element 8 j + k. (The CPU's bits are in another order; they never meet.)
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

constexpr int kEach = 8;  // elements of a thread, and bits of a byte

template <Activation activation, typename M>
__device__ bool is_open(M v, M low, M high) {
  if constexpr (activation == Activation::kHardtanh) {
    return !(v <= low || v >= high);
  } else if constexpr (activation == Activation::kLeakyRelu) {
    return v > 0;
  } else {
    return !(v <= low);
  }
}

// Written so that -0 and NaN pass as in PyTorch.
template <Activation activation, typename M>
__device__ M activated(M v, M low, M high, M slope) {
  if constexpr (activation == Activation::kRelu) {
    return v < 0 ? M{0} : v;
  } else if constexpr (activation == Activation::kHardtanh) {
    return v < low ? low : (v > high ? high : v);
  } else if constexpr (activation == Activation::kLeakyRelu) {
    return v > 0 ? v : v * slope;
  } else {
    return v <= low ? high : v;
  }
}

// The thread's elements; where they are fewer, zeros beyond them.
template <bool is_whole, typename T>
__device__ void load_each(T (&lanes)[kEach], const void* from, int64_t byte, int64_t n_elements) {
  const T* first = static_cast<const T*>(from) + byte * kEach;
  if constexpr (is_whole) {
    load(lanes, first);
  } else {
    for (int k = 0; k < kEach; ++k) lanes[k] = byte * kEach + k < n_elements ? first[k] : narrowed<T>(0);
  }
}

template <bool is_whole, typename T>
__device__ void store_each(void* to, const T (&lanes)[kEach], int64_t byte, int64_t n_elements) {
  T* first = static_cast<T*>(to) + byte * kEach;
  if constexpr (is_whole) {
    store(first, lanes);
  } else {
    for (int k = 0; k < kEach && byte * kEach + k < n_elements; ++k) first[k] = lanes[k];
  }
}

template <typename T, Activation activation, bool is_whole>
__global__ void __launch_bounds__(kThreads) gate_bytes(const GateArgs args, const int64_t n_bytes) {
  const int64_t byte = thread_index();
  if (byte >= n_bytes) return;
  auto low = static_cast<Math<T>>(args.low);
  if constexpr (activation == Activation::kThreshold) low = widened(narrowed<T>(low));  // as PyTorch on CUDA
  const auto high = static_cast<Math<T>>(args.high), slope = static_cast<Math<T>>(args.slope);
  T lanes[kEach];
  load_each<is_whole>(lanes, args.from, byte, args.n_elements);
  unsigned bits = 0;
  for (int k = 0; k < kEach; ++k) {
    const Math<T> v = widened(lanes[k]);
    bits |= static_cast<unsigned>(is_open<activation>(v, low, high)) << k;
    lanes[k] = narrowed<T>(activated<activation>(v, low, high, slope));
  }
  args.bits[byte] = static_cast<uint8_t>(bits);
  store_each<is_whole>(args.to, lanes, byte, args.n_elements);
}

template <typename T, bool is_whole>
__global__ void __launch_bounds__(kThreads) gate_grad_bytes(const GateArgs args, const int64_t n_bytes) {
  const int64_t byte = thread_index();
  if (byte >= n_bytes) return;
  const auto slope = static_cast<Math<T>>(args.slope);
  T lanes[kEach];
  load_each<is_whole>(lanes, args.from, byte, args.n_elements);
  const unsigned bits = args.bits[byte];
  for (int k = 0; k < kEach; ++k) {
    const Math<T> grad = widened(lanes[k]);
    const Math<T> closed = slope == 0 ? Math<T>{0} : grad * slope;
    lanes[k] = narrowed<T>((bits >> k & 1u) != 0 ? grad : closed);
  }
  store_each<is_whole>(args.to, lanes, byte, args.n_elements);
}

template <typename T, Activation activation>
const char* launch_activation(const GateArgs& args, bool is_whole, int64_t n_bytes, void* stream) {
  return launch(is_whole ? gate_bytes<T, activation, true> : gate_bytes<T, activation, false>, n_blocks(n_bytes), 1,
                stream, args, n_bytes);
}

int64_t bytes_of(const GateArgs& args) { return (args.n_elements + kEach - 1) / kEach; }

// Whether all threads have eight elements, in whole vectors.
bool all_whole(const GateArgs& args) {
  return args.n_elements % kEach == 0 && is_aligned(args.from) && is_aligned(args.to);
}

}  // namespace
}  // namespace cuda

const char* gate_cuda(const GateArgs& args, void* stream) {
  const bool is_whole = cuda::all_whole(args);
  const int64_t n_bytes = cuda::bytes_of(args);
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    switch (args.activation) {
      case Activation::kRelu: return cuda::launch_activation<T, Activation::kRelu>(args, is_whole, n_bytes, stream);
      case Activation::kHardtanh:
        return cuda::launch_activation<T, Activation::kHardtanh>(args, is_whole, n_bytes, stream);
      case Activation::kLeakyRelu:
        return cuda::launch_activation<T, Activation::kLeakyRelu>(args, is_whole, n_bytes, stream);
      case Activation::kThreshold: break;
    }
    return cuda::launch_activation<T, Activation::kThreshold>(args, is_whole, n_bytes, stream);
  });
}

const char* gate_grad_cuda(const GateArgs& args, void* stream) {
  const int64_t n_bytes = cuda::bytes_of(args);
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    return cuda::launch(cuda::all_whole(args) ? cuda::gate_grad_bytes<T, true> : cuda::gate_grad_bytes<T, false>,
                        cuda::n_blocks(n_bytes), 1, stream, args, n_bytes);
  });
}

}  // namespace igfast
