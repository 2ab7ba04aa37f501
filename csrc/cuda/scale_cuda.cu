// The (x - baseline) factor, in place. A thread loops over examples, which saves the division that would find its own,
// and loads a baseline that they share once.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

template <typename T, int width>
__global__ void __launch_bounds__(kThreads)
    scale_examples(const ScaleArgs args, const int64_t n_stretches, const int64_t examples_each) {
  const int64_t index = thread_index();
  if (index >= n_stretches) return;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * examples_each, first = index * width;
  const int64_t end = begin + examples_each < args.n_examples ? begin + examples_each : args.n_examples;
  T b[width];
  for (int64_t example = begin; example < end; ++example) {
    Math<T> acc[width];
    T x[width];
    auto* to = static_cast<Math<T>*>(args.acc) + example * args.n_features + first;
    load(acc, to);
    load(x, static_cast<const T*>(args.x) + example * args.n_features + first);
    if (example == begin || args.baseline.stride != 0) load_baseline(b, args.baseline, example, first);
    for (int k = 0; k < width; ++k) acc[k] *= widened(x[k]) - widened(b[k]);
    store(to, acc);
  }
}

template <typename T, int width>
const char* launch_width(const ScaleArgs& args, void* stream) {
  return launch_parts(scale_examples<T, width>, args, args.n_features / width, args.n_examples, stream);
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
