// The quadrature sum: acc[example[r]] += weight[r] * grads[r]. A thread adds up a stretch of one example in row order,
// so the result is the same every time.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

// The rows of each example as a list: args.links[e] is the first row of example e, and links[n_examples + r] the row of
// the same example after r; n_rows ends it. Rows usually run through the examples step after step, so that the next one
// is n_examples away.
__global__ void __launch_bounds__(kThreads) link_rows(const DeviceRows rows, int64_t* links) {
  const int64_t index = thread_index();
  if (index >= rows.n_examples + rows.n_rows) return;
  const bool is_first = index < rows.n_examples;
  int64_t r = is_first ? 0 : index - rows.n_examples + 1;
  const int64_t example = is_first ? index : rows.example[r - 1];
  assert(example >= 0 && example < rows.n_examples);
  while (r < rows.n_rows && rows.example[r] != example) ++r;
  links[index] = r;
}

template <typename T, int width>
__global__ void __launch_bounds__(kThreads) accumulate_rows(const CudaAccumulateArgs args, const int64_t n_stretches) {
  const int64_t index = thread_index();
  if (index >= n_stretches * args.rows.n_examples) return;
  const int64_t example = index / n_stretches;
  const int64_t stretch = index % n_stretches;
  auto* to =
      at<Math<T>>(args.acc, offset_of<width>(args.features, args.acc, stretch) + example * args.acc.batch_stride);
  const T* from = at<const T>(args.grads, offset_of<width>(args.features, args.grads, stretch));
  const int64_t* next = args.links + args.rows.n_examples;
  int64_t r = args.links[example];
  if (r >= args.rows.n_rows) return;
  Math<T> acc[width];
  load(acc, to);
  while (r < args.rows.n_rows) {
    T grads[width];
    load(grads, from + r * args.grads.batch_stride);
    const int64_t following = next[r];
    const auto weight = static_cast<Math<T>>(args.weight[r]);
    Math<T> poison = 0;  // 0, or NaN where a gradient is a NaN or an infinity
    for (int k = 0; k < width; ++k) {
      const Math<T> grad = widened(grads[k]);
      poison += grad * 0;
      acc[k] += grad * weight;
    }
    // Several threads may find the same row not finite; all of them write the same byte.
    if (args.finite != nullptr && poison != 0) args.finite[r] = 0;
    r = following;
  }
  store(to, acc);
}

template <typename T, int width>
const char* launch_width(const CudaAccumulateArgs& args, void* stream) {
  const int64_t n_stretches = n_features(args.features) / width;
  const int64_t n_links = args.rows.n_examples + args.rows.n_rows;
  const char* failed = launch(link_rows, n_blocks(n_links), 1, stream, args.rows, args.links);
  if (failed != nullptr) return failed;
  return launch(accumulate_rows<T, width>, n_blocks(n_stretches * args.rows.n_examples), 1, stream, args, n_stretches);
}

}  // namespace
}  // namespace cuda

const char* accumulate_cuda(const CudaAccumulateArgs& args, void* stream) {
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int lanes = cuda::kLanes<T>;
    // An expanded gradient, one number for all features, is not a vector.
    const bool is_flat = cuda::is_flat<cuda::Math<T>>(args.features, args.acc, lanes) &&
                         cuda::is_flat<T>(args.features, args.grads, lanes) &&
                         args.grads.strides[args.features.n_dims - 1] == 1 &&
                         args.acc.strides[args.features.n_dims - 1] == 1;
    return is_flat ? cuda::launch_width<T, lanes>(args, stream) : cuda::launch_width<T, 1>(args, stream);
  });
}

}  // namespace igfast
