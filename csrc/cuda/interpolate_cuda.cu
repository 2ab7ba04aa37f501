// Path points: out[r] = b + alpha (x - b). A thread loops over rows, and keeps its features of x and b in registers
// while the example stays the same. Otherwise the thread reloads both, from the cache.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

// Computed in float64 for float32, so that a point is correctly rounded (csrc/cpu/interpolate_kernel.h).
template <typename T>
using Point = std::conditional_t<sizeof(T) == sizeof(float), double, Math<T>>;

// Rows whose example and alpha are loaded at once, so that a row need not wait for its own.
constexpr int kRowsAtOnce = 4;

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
  for (int64_t first = begin; first < end; first += kRowsAtOnce) {
    int64_t example[kRowsAtOnce];
    double alpha[kRowsAtOnce];
    for (int g = 0; g < kRowsAtOnce; ++g) {
      const int64_t r = first + g < end ? first + g : end - 1;
      example[g] = args.example[r];
      alpha[g] = args.alpha[r];
      assert(example[g] >= 0 && example[g] < args.n_examples);
    }
    for (int g = 0; g < kRowsAtOnce && first + g < end; ++g) {
      if (example[g] != loaded) {
        load(x, static_cast<const T*>(args.x) + example[g] * args.n_features + index * width);
        load_baseline(b, args.baseline, example[g], index * width);
        for (int k = 0; k < width; ++k) {
          baseline[k] = static_cast<Point<T>>(widened(b[k]));
          difference[k] = static_cast<Point<T>>(widened(x[k])) - baseline[k];
        }
        loaded = example[g];
      }
      T out[width];
      for (int k = 0; k < width; ++k) {
        const Point<T> point = baseline[k] + static_cast<Point<T>>(alpha[g]) * difference[k];
        // The path's ends are copied, so that they are exact even if the other end is infinite (0 * inf is NaN).
        out[k] = alpha[g] == 0.0 ? b[k] : (alpha[g] == 1.0 ? x[k] : narrowed<T>(static_cast<Math<T>>(point)));
      }
      store(static_cast<T*>(args.out) + (first + g) * args.n_features + index * width, out);
    }
  }
}

template <typename T, int width>
const char* launch_width(const InterpolateArgs& args, void* stream) {
  return launch_parts(interpolate_rows<T, width>, args, args.n_features / width, args.n_rows, stream);
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
