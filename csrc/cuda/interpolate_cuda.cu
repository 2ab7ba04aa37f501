// Path points: out[r] = b + alpha (x - b). A thread loops over rows, and keeps its features of x and b in registers
// while the example stays the same. Otherwise the thread reloads both, from the cache.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

// Computed in float64 for float32, so that a point is correctly rounded (csrc/cpu/interpolate_kernel.h).
template <typename T>
using Point = std::conditional_t<sizeof(T) == sizeof(float), double, Math<T>>;

template <typename T, int width>
__global__ void __launch_bounds__(kThreads)
    interpolate_rows(const InterpolateArgs args, const int64_t n_stretches, const int64_t rows_each) {
  const int64_t index = thread_index();
  if (index >= n_stretches) return;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * rows_each;
  const int64_t end = begin + rows_each < args.n_rows ? begin + rows_each : args.n_rows;
  const T* xs = static_cast<const T*>(args.x) + index * width;
  T* to = static_cast<T*>(args.out) + begin * args.n_features + index * width;
  T x[width] = {}, b[width] = {};
  Point<T> baseline[width] = {}, difference[width] = {};
  int64_t loaded = -1;
  for (int64_t first = begin; first < end; first += kRowsAtOnce) {
    int64_t example[kRowsAtOnce];
    double alpha[kRowsAtOnce];
    for (int g = 0; g < kRowsAtOnce; ++g) {
      const int64_t r = first + g < end ? first + g : end - 1;
      example[g] = constant(args.example + r);
      alpha[g] = constant(args.alpha + r);
    }
    for (int g = 0; g < kRowsAtOnce && first + g < end; ++g, to += args.n_features) {
      if (example[g] != loaded) {
        loaded = example[g];
        check_index(loaded, args.n_examples);
        load_constant(x, xs + loaded * args.n_features);
        load_baseline(b, args.baseline, loaded, index * width);
        for (int k = 0; k < width; ++k) {
          baseline[k] = static_cast<Point<T>>(widened(b[k]));
          difference[k] = static_cast<Point<T>>(widened(x[k])) - baseline[k];
        }
      }
      const auto by = static_cast<Point<T>>(alpha[g]);
      // The path's ends are copied, so that they are exact even if the other end is infinite (0 * inf is NaN).
      if (alpha[g] == 0.0) {
        store(to, b);
      } else if (alpha[g] == 1.0) {
        store(to, x);
      } else {
        T out[width];
        for (int k = 0; k < width; ++k) {
          out[k] = narrowed<T>(static_cast<Math<T>>(baseline[k] + by * difference[k]));
        }
        store(to, out);
      }
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
