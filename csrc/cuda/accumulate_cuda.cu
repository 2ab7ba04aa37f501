// The quadrature sum: acc[example[r]] += weight[r] * grads[r]. A thread sums consecutive features of one example in row
// order, so the result is deterministic.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

// Lists the rows of each example. args.links[e] is the first row of example e; links[n_examples + r] is the row of the
// same example after r; n_rows ends a list. Rows usually cycle through the examples, so the next row of an example is
// usually n_examples away.
__global__ void __launch_bounds__(kThreads) link_rows(const AccumulateArgs args) {
  const int64_t index = thread_index();
  if (index >= args.n_examples + args.n_rows) return;
  const bool is_first = index < args.n_examples;
  int64_t r = is_first ? 0 : index - args.n_examples + 1;
  const int64_t example = is_first ? index : args.example[r - 1];
  assert(example >= 0 && example < args.n_examples);
  while (r < args.n_rows && args.example[r] != example) ++r;
  args.links[index] = r;
}

template <typename T, int width>
__global__ void __launch_bounds__(kThreads) accumulate_rows(const AccumulateArgs args, const int64_t n_stretches) {
  const int64_t index = thread_index();
  if (index >= n_stretches * args.n_examples) return;
  const int64_t example = quotient(index, n_stretches), stretch = index - example * n_stretches;
  auto* to = static_cast<Math<T>*>(args.acc) + example * args.n_features + stretch * width;
  const T* from = static_cast<const T*>(args.grads) + stretch * width;
  const int64_t* next = args.links + args.n_examples;
  int64_t r = args.links[example];
  if (r >= args.n_rows) return;
  Math<T> acc[width];
  load(acc, to);
  while (r < args.n_rows) {
    T grads[width];
    load(grads, from + r * args.n_features);
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
const char* launch_width(const AccumulateArgs& args, void* stream) {
  const int64_t n_stretches = args.n_features / width;
  const int64_t n_links = args.n_examples + args.n_rows;
  const char* failed = launch(link_rows, n_blocks(n_links), 1, stream, args);
  if (failed != nullptr) return failed;
  return launch(accumulate_rows<T, width>, n_blocks(n_stretches * args.n_examples), 1, stream, args, n_stretches);
}

}  // namespace
}  // namespace cuda

const char* accumulate_cuda(const AccumulateArgs& args, void* stream) {
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int lanes = cuda::kLanes<T>;
    const bool are_vectors = args.n_features % lanes == 0 && cuda::is_aligned(args.acc) && cuda::is_aligned(args.grads);
    return are_vectors ? cuda::launch_width<T, lanes>(args, stream) : cuda::launch_width<T, 1>(args, stream);
  });
}

}  // namespace igfast
