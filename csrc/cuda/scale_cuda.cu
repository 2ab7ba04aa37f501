// The (x - baseline) factor, in place.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

template <typename T, int width>
__global__ void __launch_bounds__(kThreads) scale_stretches(const ScaleArgs args, const int64_t n_stretches) {
  const int64_t index = thread_index();
  if (index >= n_stretches * args.n_examples) return;
  const int64_t example = quotient(index, n_stretches), first = (index - example * n_stretches) * width;
  Math<T> acc[width];
  T x[width], b[width];
  auto* to = static_cast<Math<T>*>(args.acc) + example * args.n_features + first;
  load(acc, to);
  load(x, static_cast<const T*>(args.x) + example * args.n_features + first);
  load_baseline(b, args.baseline, example, first);
  for (int k = 0; k < width; ++k) acc[k] *= widened(x[k]) - widened(b[k]);
  store(to, acc);
}

template <typename T, int width>
const char* launch_width(const ScaleArgs& args, void* stream) {
  const int64_t n_stretches = args.n_features / width;
  return launch(scale_stretches<T, width>, n_blocks(n_stretches * args.n_examples), 1, stream, args, n_stretches);
}

}  // namespace
}  // namespace cuda

const char* scale_cuda(const ScaleArgs& args, void* stream) {
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int lanes = cuda::kLanes<cuda::Math<T>>;  // the accumulators have the most bytes
    const bool are_vectors = args.n_features % lanes == 0 && cuda::is_aligned(args.acc) && cuda::is_aligned(args.x) &&
                             cuda::is_aligned(args.baseline);
    return are_vectors ? cuda::launch_width<T, lanes>(args, stream) : cuda::launch_width<T, 1>(args, stream);
  });
}

}  // namespace igfast
