// Piecewise linear activations and their gradients, which save one bit per element. A warp has 256 consecutive
// elements. The warp's threads take vectors of 16 bytes in turn, so that all accesses coalesce. Bit k of a thread's
// byte belongs to the thread's k-th element. The CPU orders bits differently, but bits never change devices.
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

// -0 and NaN pass as in PyTorch.
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

constexpr int64_t kWarp = 32;
constexpr int64_t kGroup = kWarp * kEach;  // elements of a warp
static_assert(kGroup / 8 <= kGateBytes && kGateBlock % kGroup == 0, "bits are allocated for whole blocks");

// Returns the index of a thread's k-th element. A thread's vectors are a warp's vectors apart.
template <typename T>
__device__ int64_t element_at(int64_t byte, int k) {
  return byte / kWarp * kGroup + k / kLanes<T> * (kWarp * kLanes<T>)+byte % kWarp * kLanes<T> + k % kLanes<T>;
}

// Whether the thread's warp has all of its elements, in aligned vectors.
__device__ inline bool is_whole(int64_t byte, int64_t n_elements, bool is_aligned) {
  return is_aligned && (byte / kWarp + 1) * kGroup <= n_elements;
}

// Loads the thread's elements, and zeros beyond the last.
template <typename T>
__device__ void load_each(T (&lanes)[kEach], const void* from, int64_t byte, int64_t n_elements, bool is_aligned) {
  const T* first = static_cast<const T*>(from);
  if (is_whole(byte, n_elements, is_aligned)) {
    for (int v = 0; v < kEach; v += kLanes<T>) {
      T vector[kLanes<T>];
      load(vector, first + element_at<T>(byte, v));
      for (int k = 0; k < kLanes<T>; ++k) lanes[v + k] = vector[k];
    }
  } else {
    for (int k = 0; k < kEach; ++k) {
      const int64_t at = element_at<T>(byte, k);
      lanes[k] = at < n_elements ? first[at] : narrowed<T>(0);
    }
  }
}

template <typename T>
__device__ void store_each(void* to, const T (&lanes)[kEach], int64_t byte, int64_t n_elements, bool is_aligned) {
  T* first = static_cast<T*>(to);
  if (is_whole(byte, n_elements, is_aligned)) {
    for (int v = 0; v < kEach; v += kLanes<T>) {
      T vector[kLanes<T>];
      for (int k = 0; k < kLanes<T>; ++k) vector[k] = lanes[v + k];
      store(first + element_at<T>(byte, v), vector);
    }
  } else {
    for (int k = 0; k < kEach; ++k) {
      const int64_t at = element_at<T>(byte, k);
      if (at < n_elements) first[at] = lanes[k];
    }
  }
}

template <typename T, Activation activation>
__global__ void __launch_bounds__(kThreads)
    gate_bytes(const GateArgs args, const int64_t n_bytes, const bool is_aligned) {
  const int64_t byte = thread_index();
  if (byte >= n_bytes) return;
  auto low = static_cast<Math<T>>(args.low);
  if constexpr (activation == Activation::kThreshold) low = widened(narrowed<T>(low));  // as PyTorch on CUDA
  const auto high = static_cast<Math<T>>(args.high), slope = static_cast<Math<T>>(args.slope);
  T lanes[kEach];
  load_each(lanes, args.from, byte, args.n_elements, is_aligned);
  unsigned bits = 0;
  for (int k = 0; k < kEach; ++k) {
    const Math<T> v = widened(lanes[k]);
    bits |= static_cast<unsigned>(is_open<activation>(v, low, high)) << k;
    lanes[k] = narrowed<T>(activated<activation>(v, low, high, slope));
  }
  args.bits[byte] = static_cast<uint8_t>(bits);
  store_each(args.to, lanes, byte, args.n_elements, is_aligned);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gate_grad_bytes(const GateArgs args, const int64_t n_bytes, const bool is_aligned) {
  const int64_t byte = thread_index();
  if (byte >= n_bytes) return;
  const auto slope = static_cast<Math<T>>(args.slope);
  T lanes[kEach];
  load_each(lanes, args.from, byte, args.n_elements, is_aligned);
  const unsigned bits = args.bits[byte];
  for (int k = 0; k < kEach; ++k) {
    const Math<T> grad = widened(lanes[k]);
    const Math<T> closed = slope == 0 ? Math<T>{0} : grad * slope;
    lanes[k] = narrowed<T>((bits >> k & 1u) != 0 ? grad : closed);
  }
  store_each(args.to, lanes, byte, args.n_elements, is_aligned);
}

template <typename T, Activation activation>
const char* launch_activation(const GateArgs& args, bool is_aligned, int64_t n_bytes, void* stream) {
  return launch(gate_bytes<T, activation>, n_blocks(n_bytes), 1, stream, args, n_bytes, is_aligned);
}

// Bytes of bits, of whole warps.
int64_t bytes_of(const GateArgs& args) { return (args.n_elements + kGroup - 1) / kGroup * kWarp; }

bool are_aligned(const GateArgs& args) { return is_aligned(args.from) && is_aligned(args.to); }

}  // namespace
}  // namespace cuda

const char* gate_cuda(const GateArgs& args, void* stream) {
  const bool is_aligned = cuda::are_aligned(args);
  const int64_t n_bytes = cuda::bytes_of(args);
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    switch (args.activation) {
      case Activation::kRelu: return cuda::launch_activation<T, Activation::kRelu>(args, is_aligned, n_bytes, stream);
      case Activation::kHardtanh:
        return cuda::launch_activation<T, Activation::kHardtanh>(args, is_aligned, n_bytes, stream);
      case Activation::kLeakyRelu:
        return cuda::launch_activation<T, Activation::kLeakyRelu>(args, is_aligned, n_bytes, stream);
      case Activation::kThreshold: break;
    }
    return cuda::launch_activation<T, Activation::kThreshold>(args, is_aligned, n_bytes, stream);
  });
}

const char* gate_grad_cuda(const GateArgs& args, void* stream) {
  const int64_t n_bytes = cuda::bytes_of(args);
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    return cuda::launch(cuda::gate_grad_bytes<T>, cuda::n_blocks(n_bytes), 1, stream, args, n_bytes,
                        cuda::are_aligned(args));
  });
}

}  // namespace igfast
