// The (x - baseline) factor, in place. A thread loops over examples, which saves the division that would find its own,
// and loads a baseline that they share once. It loads all that two examples need before it writes to one: the compiler
// cannot know that they do not overlap.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

constexpr int kExamplesAtOnce = 2;

template <typename T, int width>
__global__ void __launch_bounds__(kThreads)
    scale_examples(const ScaleArgs args, const int64_t n_stretches, const int64_t examples_each) {
  const int64_t index = thread_index();
  if (index >= n_stretches) return;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * examples_each, offset = index * width;
  const int64_t end = begin + examples_each < args.n_examples ? begin + examples_each : args.n_examples;
  const bool is_shared = args.baseline.is_number || args.baseline.stride == 0;
  T b[kExamplesAtOnce][width];
  if (is_shared) load_baseline(b[0], args.baseline, 0, offset);
  for (int64_t first = begin; first < end; first += kExamplesAtOnce) {
    Math<T> acc[kExamplesAtOnce][width];
    T x[kExamplesAtOnce][width];
    auto* to = static_cast<Math<T>*>(args.acc) + first * args.n_features + offset;
    const T* from = static_cast<const T*>(args.x) + first * args.n_features + offset;
    for (int g = 0; g < kExamplesAtOnce && first + g < end; ++g) {
      load(acc[g], to + g * args.n_features);
      load_constant(x[g], from + g * args.n_features);
      if (!is_shared) load_baseline(b[g], args.baseline, first + g, offset);
    }
    for (int g = 0; g < kExamplesAtOnce && first + g < end; ++g) {
      for (int k = 0; k < width; ++k) acc[g][k] *= widened(x[g][k]) - widened(is_shared ? b[0][k] : b[g][k]);
      store(to + g * args.n_features, acc[g]);
    }
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
