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

// Returns a channel's constant, or `otherwise` if there is none.
template <typename T>
__device__ Math<T> constant(const void* of, int64_t channel, double otherwise) {
  return of == nullptr ? static_cast<Math<T>>(otherwise) : widened(static_cast<const T*>(of)[channel]);
}

template <typename T>
__device__ Math<T> scale_of(const BatchNormArgs& args, int64_t channel) {
  const Math<T> variance = constant<T>(args.variance, channel, 0);
  return constant<T>(args.weight, channel, 1) * inverse_root(variance + static_cast<Math<T>>(args.eps));
}

template <typename T, int width, bool is_gradient>
__global__ void __launch_bounds__(kThreads) map_channels(const BatchNormArgs args, const int64_t n_stretches) {
  const int64_t index = thread_index();
  if (index >= n_stretches) return;
  const int64_t first = index * width;
  const int64_t of_all = args.channels_last ? first : quotient(first, args.n_positions);
  const int64_t channel = of_all - quotient(of_all, args.n_channels) * args.n_channels;
  T lanes[width];
  load(lanes, static_cast<const T*>(args.from) + first);
  Math<T> scale = 0, mean = 0, bias = 0;
  for (int k = 0; k < width; ++k) {
    const int64_t of_lane = args.channels_last ? channel + k : channel;
    if (k == 0 || args.channels_last) {
      scale = scale_of<T>(args, of_lane);
      if constexpr (!is_gradient) {
        mean = constant<T>(args.mean, of_lane, 0);
        bias = constant<T>(args.bias, of_lane, 0);
      }
    }
    const Math<T> value = widened(lanes[k]);
    lanes[k] = narrowed<T>(is_gradient ? value * scale : (value - mean) * scale + bias);
  }
  store(static_cast<T*>(args.to) + first, lanes);
}

template <bool is_gradient>
const char* launch_map(const BatchNormArgs& args, void* stream) {
  return for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int lanes = kLanes<T>;
    const int64_t run = args.channels_last ? args.n_channels : args.n_positions;
    const bool is_whole = run % lanes == 0 && is_aligned(args.from) && is_aligned(args.to);
    const int64_t n = is_whole ? args.n_elements / lanes : args.n_elements;
    return launch(is_whole ? map_channels<T, lanes, is_gradient> : map_channels<T, 1, is_gradient>, n_blocks(n), 1,
                  stream, args, n);
  });
}

}  // namespace
}  // namespace cuda

const char* batch_norm_cuda(const BatchNormArgs& args, void* stream) { return cuda::launch_map<false>(args, stream); }
const char* batch_norm_grad_cuda(const BatchNormArgs& args, void* stream) {
  return cuda::launch_map<true>(args, stream);
}

}  // namespace igfast
