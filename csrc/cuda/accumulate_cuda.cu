// The quadrature sum: acc[example[r]] += weight[r] * grads[r]. A thread sums consecutive features of one example in row
// order, so the result is deterministic.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

// Lists the rows of each example. args.links[e] is the first row of example e; links[n_examples + r] is the row of the
// same example after r; n_rows ends a list. For few rows: a thread looks at one row after the other, up to all of them.
__global__ void __launch_bounds__(kThreads) link_rows(const AccumulateArgs args) {
  const int64_t index = thread_index();
  if (index >= args.n_examples + args.n_rows) return;
  const bool is_first = index < args.n_examples;
  int64_t r = is_first ? 0 : index - args.n_examples + 1;
  const int64_t example = is_first ? index : args.example[r - 1];
  check_index(example, args.n_examples);
  while (r < args.n_rows && args.example[r] != example) ++r;
  args.links[index] = r;
}

// The same from the rows in the order of their examples. args.sorted has the examples, ascending; args.order their
// rows, ascending for each example.
__global__ void __launch_bounds__(kThreads) link_sorted(const AccumulateArgs args) {
  const int64_t index = thread_index();
  if (index >= args.n_examples + args.n_rows) return;
  int64_t place = 0, example = index;
  if (index < args.n_examples) {  // the first place that does not have a smaller example
    for (int64_t end = args.n_rows; place < end;) {
      const int64_t middle = place + (end - place) / 2;
      if (args.sorted[middle] < example) {
        place = middle + 1;
      } else {
        end = middle;
      }
    }
  } else {
    place = index - args.n_examples + 1;
    example = args.sorted[place - 1];
    check_index(example, args.n_examples);
  }
  const bool has_row = place < args.n_rows && args.sorted[place] == example;
  const int64_t at = index < args.n_examples ? index : args.n_examples + args.order[place - 1];
  args.links[at] = has_row ? args.order[place] : args.n_rows;
}

template <typename T, int width>
__global__ void __launch_bounds__(kThreads) accumulate_rows(const AccumulateArgs args, const int64_t n_stretches) {
  const int64_t index = thread_index();
  if (index >= n_stretches * args.n_examples) return;
  const int64_t example = quotient(index, n_stretches), stretch = index - example * n_stretches;
  auto* to = static_cast<Math<T>*>(args.acc) + example * args.n_features + stretch * width;
  const T* from = static_cast<const T*>(args.grads) + stretch * width;
  const int64_t* next = args.links + args.n_examples;
  int64_t r = constant(args.links + example);
  if (r >= args.n_rows) return;
  Math<T> acc[width];
  load(acc, to);
  while (r < args.n_rows) {
    int64_t rows[kRowsAtOnce];
    T grads[kRowsAtOnce][width];
    double weights[kRowsAtOnce];
    for (int g = 0; g < kRowsAtOnce; ++g) {
      rows[g] = r;
      if (r < args.n_rows) {
        load_constant(grads[g], from + r * args.n_features);
        weights[g] = constant(args.weight + r);
        r = constant(next + r);
      }
    }
    for (int g = 0; g < kRowsAtOnce && rows[g] < args.n_rows; ++g) {
      const auto weight = static_cast<Math<T>>(weights[g]);
      Math<T> poison = 0;  // 0, or NaN where a gradient is a NaN or an infinity
      for (int k = 0; k < width; ++k) {
        const Math<T> grad = widened(grads[g][k]);
        poison += grad * 0;
        acc[k] += grad * weight;
      }
      // Several threads may find the same row not finite; all of them write the same byte.
      if (args.finite != nullptr && poison != 0) args.finite[rows[g]] = 0;
    }
  }
  store(to, acc);
}

template <typename T, int width>
const char* launch_width(const AccumulateArgs& args, void* stream) {
  const int64_t n_stretches = args.n_features / width;
  const int64_t n_links = args.n_examples + args.n_rows;
  const char* failed = launch(args.sorted == nullptr ? link_rows : link_sorted, n_blocks(n_links), 1, stream, args);
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
