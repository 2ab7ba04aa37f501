// The (x - baseline) factor, in place, with the float64 sum of the result that the convergence delta needs. Each thread
// sums what it scales, and the sums are added up in a tree that has the same shape every time.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

constexpr int64_t kStretchesEach = 16;  // that a thread scales, so that its sum is little to write beside them
constexpr int kAtOnce = 2;              // of them that it loads before it stores any
constexpr int64_t kFanIn = 64;          // sums that a thread adds up

// Threads that scale one example; as many sums. The widest stretch has fewest.
int64_t n_sums_of_example(const Features& features) {
  return (n_features(features) + kStretchesEach - 1) / kStretchesEach;
}

template <typename T, int width>
__global__ void __launch_bounds__(kThreads)
    scale_stretches(const ScaleArgs args, const int64_t n_examples, const int64_t n_sums, const int64_t n_stretches) {
  // Blocks of all examples take turns, so that a baseline which they share is in the cache after the first.
  const int64_t example = static_cast<int64_t>(blockIdx.x) % n_examples;
  const int64_t first = static_cast<int64_t>(blockIdx.x) / n_examples * kThreads + static_cast<int64_t>(threadIdx.x);
  if (first >= n_sums) return;
  const bool is_number = args.baseline.strides[args.features.n_dims - 1] == 0;
  double sum = 0;
  for (int64_t begin = first; begin < n_stretches; begin += kAtOnce * n_sums) {
    Math<T>* to[kAtOnce];
    Math<T> acc[kAtOnce][width];
    T x[kAtOnce][width], b[kAtOnce][width];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t s = begin + i * n_sums;
      if (s >= n_stretches) continue;
      to[i] = at<Math<T>>(args.acc, offset_of<width>(args.features, args.acc, s) + example * args.acc.batch_stride);
      const T* base = at<const T>(
          args.baseline, offset_of<width>(args.features, args.baseline, s) + example * args.baseline.batch_stride);
      load(acc[i], to[i]);
      load(x[i], at<const T>(args.x, offset_of<width>(args.features, args.x, s) + example * args.x.batch_stride));
      if (is_number) {
        for (int k = 0; k < width; ++k) b[i][k] = *base;
      } else {
        load(b[i], base);
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (begin + i * n_sums >= n_stretches) continue;
      for (int k = 0; k < width; ++k) {
        acc[i][k] *= widened(x[i][k]) - widened(b[i][k]);
        sum += static_cast<double>(acc[i][k]);
      }
      store(to[i], acc[i]);
    }
  }
  args.partial_sums[example * n_sums + first] = sum;
}

__global__ void __launch_bounds__(kThreads)
    add_sums(const double* from, double* to, const int64_t n_examples, const int64_t n_from, const int64_t n_to) {
  const int64_t index = thread_index();
  if (index >= n_examples * n_to) return;
  const double* of_example = from + index / n_to * n_from;
  double sum = 0;
  for (int64_t i = index % n_to; i < n_from; i += n_to) sum += of_example[i];
  to[index] = sum;
}

template <typename T, int width>
const char* launch_width(const ScaleArgs& args, int64_t n_examples, double* sums, void* stream) {
  const int64_t n_stretches = n_features(args.features) / width;
  int64_t n_sums = (n_stretches + kStretchesEach - 1) / kStretchesEach;
  const char* failed = launch(scale_stretches<T, width>, n_blocks(n_sums) * n_examples, 1, stream, args, n_examples,
                              n_sums, n_stretches);
  double* from = args.partial_sums;
  double* other = args.partial_sums + n_examples * n_sums;
  do {
    const int64_t n_to = (n_sums + kFanIn - 1) / kFanIn;
    double* to = n_to == 1 ? sums : other;
    if (failed == nullptr) {
      failed = launch(add_sums, n_blocks(n_examples * n_to), 1, stream, static_cast<const double*>(from), to,
                      n_examples, n_sums, n_to);
    }
    std::swap(from, other);
    n_sums = n_to;
  } while (n_sums > 1);
  return failed;
}

}  // namespace
}  // namespace cuda

int64_t scale_scratch_cuda(const Features& features, int64_t n_examples) {
  const int64_t n_sums = cuda::n_sums_of_example(features);
  return n_examples * (n_sums + (n_sums + cuda::kFanIn - 1) / cuda::kFanIn);
}

const char* scale_cuda(const ScaleArgs& args, int64_t n_examples, double* sums, void* stream) {
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int lanes = cuda::kLanes<T>;
    const int32_t inner = args.features.n_dims - 1;
    const bool is_flat = cuda::is_flat<cuda::Math<T>>(args.features, args.acc, lanes) &&
                         cuda::is_flat<T>(args.features, args.x, lanes) &&
                         cuda::is_flat<T>(args.features, args.baseline, lanes) && args.acc.strides[inner] == 1 &&
                         args.x.strides[inner] == 1;
    return is_flat ? cuda::launch_width<T, lanes>(args, n_examples, sums, stream)
                   : cuda::launch_width<T, 1>(args, n_examples, sums, stream);
  });
}

}  // namespace igfast
