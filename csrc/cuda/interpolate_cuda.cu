// Path points: out[r] = b + alpha (x - b). A thread goes through the rows and keeps its stretch of x and b as long as
// they are of one example; with more examples it loads them again, from the cache.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

// float64 for float32, so that a point is the correctly rounded one (csrc/cpu/interpolate_kernel.h).
template <typename T>
struct PointMathOf {
  using type = Math<T>;
};
template <>
struct PointMathOf<float> {
  using type = double;
};

// Blocks below which rows are spread over threads too: 8 for each multiprocessor of a large device.
constexpr int64_t kEnoughBlocks = 1024;

template <typename T, int width>
__device__ void load_end(T (&lanes)[width], const Operand& operand, int64_t offset, bool is_number) {
  if (is_number) {
    for (int k = 0; k < width; ++k) lanes[k] = *at<const T>(operand, offset);
  } else {
    load(lanes, at<const T>(operand, offset));
  }
}

template <typename T, int width>
__global__ void __launch_bounds__(kThreads)
    interpolate_rows(const CudaInterpolateArgs args, const int64_t n_stretches, const int64_t rows_each) {
  using Point = typename PointMathOf<T>::type;
  const int64_t index = thread_index();
  if (index >= n_stretches) return;
  const int32_t inner = args.features.n_dims - 1;
  const int64_t x_offset = offset_of<width>(args.features, args.x, index);
  const int64_t b_offset = offset_of<width>(args.features, args.baseline, index);
  const int64_t out_offset = offset_of<width>(args.features, args.out, index);
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * rows_each;
  const int64_t end = begin + rows_each < args.rows.n_rows ? begin + rows_each : args.rows.n_rows;
  T x[width], b[width];
  Point baseline[width] = {}, difference[width] = {};
  int64_t loaded = -1;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t example = args.rows.example[r];
    assert(example >= 0 && example < args.rows.n_examples);
    if (example != loaded) {
      load_end(x, args.x, x_offset + example * args.x.batch_stride, args.x.strides[inner] == 0);
      load_end(b, args.baseline, b_offset + example * args.baseline.batch_stride, args.baseline.strides[inner] == 0);
      for (int k = 0; k < width; ++k) {
        baseline[k] = static_cast<Point>(widened(b[k]));
        difference[k] = static_cast<Point>(widened(x[k])) - baseline[k];
      }
      loaded = example;
    }
    const double alpha = args.alpha[r];
    T out[width];
    for (int k = 0; k < width; ++k) {
      const Point point = baseline[k] + static_cast<Point>(alpha) * difference[k];
      // The ends themselves, without rounding and whatever the other end holds (0 * inf is NaN).
      out[k] = alpha == 0.0 ? b[k] : (alpha == 1.0 ? x[k] : narrowed<T>(static_cast<Math<T>>(point)));
    }
    store(at<T>(args.out, out_offset + r * args.out.batch_stride), out);
  }
}

template <typename T, int width>
const char* launch_width(const CudaInterpolateArgs& args, void* stream) {
  const int64_t n_stretches = n_features(args.features) / width;
  const int64_t blocks = n_blocks(n_stretches);
  const int64_t parts = std::min(args.rows.n_rows, (kEnoughBlocks + blocks - 1) / blocks);
  const int64_t rows_each = (args.rows.n_rows + parts - 1) / parts;
  return launch(interpolate_rows<T, width>, blocks, (args.rows.n_rows + rows_each - 1) / rows_each, stream, args,
                n_stretches, rows_each);
}

}  // namespace
}  // namespace cuda

const char* interpolate_cuda(const CudaInterpolateArgs& args, void* stream) {
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int lanes = cuda::kLanes<T>;
    const bool is_flat = cuda::is_flat<T>(args.features, args.out, lanes) &&
                         cuda::is_flat<T>(args.features, args.x, lanes) &&
                         cuda::is_flat<T>(args.features, args.baseline, lanes) &&
                         args.features.sizes[args.features.n_dims - 1] % lanes == 0;
    return is_flat ? cuda::launch_width<T, lanes>(args, stream) : cuda::launch_width<T, 1>(args, stream);
  });
}

}  // namespace igfast
