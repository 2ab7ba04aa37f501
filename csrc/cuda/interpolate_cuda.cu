// Path points: out[r] = b + alpha (x - b). A thread loops over rows, and keeps its features of x and b in registers
// while the example stays the same. Otherwise the thread reloads both, from the cache.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

// Computed in float64 for float32, so that a point is correctly rounded (csrc/cpu/interpolate_kernel.h).
template <typename T>
using Point = std::conditional_t<sizeof(T) == sizeof(float), double, Math<T>>;

// With fewer blocks, the rows are split between threads too. 1024 is 8 per multiprocessor of a large device.
constexpr int64_t kEnoughBlocks = 1024;

template <typename T, int width>
__global__ void __launch_bounds__(kThreads)
    interpolate_rows(const InterpolateArgs args, const int64_t n_stretches, const int64_t rows_each) {
  const int64_t index = thread_index();
  if (index >= n_stretches) return;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * rows_each;
  const int64_t end = begin + rows_each < args.n_rows ? begin + rows_each : args.n_rows;
  T x[width] = {}, b[width] = {};
  Point<T> baseline[width] = {}, difference[width] = {};
  int64_t loaded = -1;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t example = args.example[r];
    assert(example >= 0 && example < args.n_examples);
    if (example != loaded) {
      load(x, static_cast<const T*>(args.x) + example * args.n_features + index * width);
      load_baseline(b, args.baseline, example, index * width);
      for (int k = 0; k < width; ++k) {
        baseline[k] = static_cast<Point<T>>(widened(b[k]));
        difference[k] = static_cast<Point<T>>(widened(x[k])) - baseline[k];
      }
      loaded = example;
    }
    const double alpha = args.alpha[r];
    T* to = static_cast<T*>(args.out) + r * args.n_features + index * width;
    // The path's ends are copied, so that they are exact even if the other end is infinite (0 * inf is NaN).
    if (alpha == 0.0 || alpha == 1.0) {
      store(to, alpha == 0.0 ? b : x);
      continue;
    }
    T out[width];
    for (int k = 0; k < width; ++k) {
      const Point<T> point = baseline[k] + static_cast<Point<T>>(alpha) * difference[k];
      out[k] = narrowed<T>(static_cast<Math<T>>(point));
    }
    store(to, out);
  }
}

template <typename T, int width>
const char* launch_width(const InterpolateArgs& args, void* stream) {
  const int64_t n_stretches = args.n_features / width;
  const int64_t blocks = n_blocks(n_stretches);
  const int64_t parts = std::min(args.n_rows, (kEnoughBlocks + blocks - 1) / blocks);
  const int64_t rows_each = (args.n_rows + parts - 1) / parts;
  return launch(interpolate_rows<T, width>, blocks, (args.n_rows + rows_each - 1) / rows_each, stream, args,
                n_stretches, rows_each);
}

}  // namespace
}  // namespace cuda

const char* interpolate_cuda(const InterpolateArgs& args, void* stream) {
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int lanes = cuda::kLanes<T>;
    const bool are_vectors = args.n_features % lanes == 0 && cuda::is_aligned(args.x) && cuda::is_aligned(args.out) &&
                             cuda::is_aligned(args.baseline);
    return are_vectors ? cuda::launch_width<T, lanes>(args, stream) : cuda::launch_width<T, 1>(args, stream);
  });
}

}  // namespace igfast
