// Batch normalisation in eval mode, an affine map of each channel, and its gradient. PyTorch computes the gradient's
// factors in four extra kernels, and its maps take 1.5 to 2.5 times as long as a copy (H200). A thread has one vector,
// or one element where vectors would wrap around channels or positions or are not aligned.
#include <cmath>

#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

__device__ inline float inverse_root(float v) { return rsqrtf(v); }
__device__ inline double inverse_root(double v) { return rsqrt(v); }

// Loads the constants of a thread's channels, or of its one channel; `otherwise` where there are none.
template <int n, typename T>
__device__ void load_constants(Math<T> (&constants)[n], const void* of, int64_t channel, float otherwise) {
  T lanes[n];
  if (of != nullptr) load(lanes, static_cast<const T*>(of) + channel);
  for (int k = 0; k < n; ++k) constants[k] = of == nullptr ? static_cast<Math<T>>(otherwise) : widened(lanes[k]);
}

// `n_constants`: the channels of a thread, whose elements are channels of one position or positions of one channel.
template <typename T, int width, int n_constants, bool is_gradient>
__global__ void __launch_bounds__(kThreads) map_channels(const BatchNormArgs args, const int64_t n_stretches) {
  const int64_t index = thread_index();
  if (index >= n_stretches) return;
  const int64_t first = index * width;
  const int64_t of_all = args.channels_last ? first : quotient(first, args.n_positions);
  const int64_t channel = of_all - quotient(of_all, args.n_channels) * args.n_channels;
  T lanes[width];
  load(lanes, static_cast<const T*>(args.from) + first);
  Math<T> scale[n_constants], variance[n_constants], mean[n_constants], bias[n_constants];
  load_constants<n_constants, T>(scale, args.weight, channel, 1);
  load_constants<n_constants, T>(variance, args.variance, channel, 0);
  for (int k = 0; k < n_constants; ++k) scale[k] *= inverse_root(variance[k] + static_cast<Math<T>>(args.eps));
  if constexpr (!is_gradient) {
    load_constants<n_constants, T>(mean, args.mean, channel, 0);
    load_constants<n_constants, T>(bias, args.bias, channel, 0);
  }
  for (int k = 0; k < width; ++k) {
    const int c = n_constants == 1 ? 0 : k;
    const Math<T> value = widened(lanes[k]);
    lanes[k] = narrowed<T>(is_gradient ? value * scale[c] : (value - mean[c]) * scale[c] + bias[c]);
  }
  store(static_cast<T*>(args.to) + first, lanes);
}

template <bool is_gradient>
const char* launch_map(const BatchNormArgs& args, void* stream) {
  return for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int lanes = kLanes<T>;
    const int64_t run = args.channels_last ? args.n_channels : args.n_positions;
    const bool are_vectors = is_aligned(args.from) && is_aligned(args.to) && is_aligned(args.weight) &&
                             is_aligned(args.variance) && is_aligned(args.mean) && is_aligned(args.bias);
    const auto launch_kernel = [&](auto kernel, int64_t n) { return launch(kernel, n_blocks(n), 1, stream, args, n); };
    if (run % lanes != 0 || !are_vectors) return launch_kernel(map_channels<T, 1, 1, is_gradient>, args.n_elements);
    const int64_t n = args.n_elements / lanes;
    return args.channels_last ? launch_kernel(map_channels<T, lanes, lanes, is_gradient>, n)
                              : launch_kernel(map_channels<T, lanes, 1, is_gradient>, n);
  });
}

}  // namespace
}  // namespace cuda

const char* batch_norm_cuda(const BatchNormArgs& args, void* stream) { return cuda::launch_map<false>(args, stream); }
const char* batch_norm_grad_cuda(const BatchNormArgs& args, void* stream) {
  return cuda::launch_map<true>(args, stream);
}

}  // namespace igfast
