// Batch normalisation in eval mode, in place: an affine map of each channel, in the order that PyTorch computes it in.
// A thread has the neighbours of one vector, or one element where channels change within vectors or those are not
// aligned.
#include <cmath>

#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

__device__ inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return fma(a, b, c); }

// The last product and the sum round once, as CUDA's compiler has it where nothing is said.
template <NormForm form, typename M>
__device__ M normalised(M x, const M* constants, int64_t channel, int64_t n_channels) {
  const auto constant = [&](int k) { return constants[k * n_channels + channel]; };
  if constexpr (form == NormForm::kScaleShift) {
    return fused(x, constant(0), constant(1));
  } else if constexpr (form == NormForm::kCentredScaled) {
    return fused(x - constant(0), constant(1), constant(2));
  } else if constexpr (form == NormForm::kCentredFirst) {
    return fused((x - constant(0)) * constant(1), constant(2), constant(3));
  } else {
    return fused(constant(2) * (x - constant(0)), constant(1), constant(3));
  }
}

// The channel of an element, by division of 32 bits where that does: a vector takes about as long as one of 64.
template <typename Index>
__device__ int64_t channel_of(const NormArgs& args, int64_t element) {
  const auto at = static_cast<Index>(element), channels = static_cast<Index>(args.n_channels);
  return args.channels_last ? at % channels : at / static_cast<Index>(args.n_positions) % channels;
}

template <typename T, NormForm form, int width>
__global__ void __launch_bounds__(kThreads) normalise_stretches(const NormArgs args, const int64_t n_stretches) {
  const int64_t index = thread_index();
  if (index >= n_stretches) return;
  const int64_t first = index * width;
  const int64_t channel =
      args.n_elements <= UINT32_MAX ? channel_of<uint32_t>(args, first) : channel_of<uint64_t>(args, first);
  const auto* constants = static_cast<const Math<T>*>(args.constants);
  T* to = static_cast<T*>(args.x) + first;
  T lanes[width];
  load(lanes, to);
  for (int k = 0; k < width; ++k) {
    const int64_t of_lane = args.channels_last ? channel + k : channel;
    lanes[k] = narrowed<T>(normalised<form>(widened(lanes[k]), constants, of_lane, args.n_channels));
  }
  store(to, lanes);
}

template <typename T, NormForm form>
const char* launch_form(const NormArgs& args, void* stream) {
  constexpr int lanes = kLanes<T>;
  const bool is_whole = (args.channels_last ? args.n_channels : args.n_positions) % lanes == 0 && is_aligned(args.x);
  const int64_t n = is_whole ? args.n_elements / lanes : args.n_elements;
  return launch(is_whole ? normalise_stretches<T, form, lanes> : normalise_stretches<T, form, 1>, n_blocks(n), 1,
                stream, args, n);
}

}  // namespace
}  // namespace cuda

const char* normalise_cuda(const NormArgs& args, void* stream) {
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    switch (args.form) {
      case NormForm::kScaleShift: return cuda::launch_form<T, NormForm::kScaleShift>(args, stream);
      case NormForm::kCentredScaled: return cuda::launch_form<T, NormForm::kCentredScaled>(args, stream);
      case NormForm::kCentredFirst: return cuda::launch_form<T, NormForm::kCentredFirst>(args, stream);
      case NormForm::kWeightFirst: break;
    }
    return cuda::launch_form<T, NormForm::kWeightFirst>(args, stream);
  });
}

}  // namespace igfast
