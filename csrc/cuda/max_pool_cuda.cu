// Max pooling and its gradient, which needs one byte per output: the number of the largest cell in the window, counted
// along the width first. The gradient gathers, so the gradient is deterministic. A thread of a channels-last tensor has
// one vector of channels.
//
// Nearly all networks have square windows of two or three cells. Kernels for those are compiled for the window, and
// load all that they need before they compare anything.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

// MaxPoolArgs in integers that hold the number of elements: 64-bit ones are slow. A plane is one channel of an example
// or, if channels-last, a whole example; `step` is the number of elements between neighbouring positions.
template <typename Index>
struct Pool {
  Index n_planes, step;
  Index input[3], output[3], kernel[3], stride[3], padding[3], dilation[3];
  const void* from;
  void* to;
  uint8_t* cell;

  explicit Pool(const MaxPoolArgs& args) : from(args.from), to(args.to), cell(args.cell) {
    n_planes = static_cast<Index>(args.n_batch * (args.channels_last ? 1 : args.n_channels));
    step = static_cast<Index>(args.channels_last ? args.n_channels : 1);
    for (int d = 0; d < 3; ++d) {
      input[d] = static_cast<Index>(args.input[d]);
      output[d] = static_cast<Index>(args.output[d]);
      kernel[d] = static_cast<Index>(args.kernel[d]);
      stride[d] = static_cast<Index>(args.stride[d]);
      padding[d] = static_cast<Index>(args.padding[d]);
      dilation[d] = static_cast<Index>(args.dilation[d]);
    }
  }
};

// The position of a thread's elements in a dense tensor of these sizes.
template <typename Index>
struct Place {
  Index plane, channel, step, at[3];
  bool exists;

  __device__ Place(const Pool<Index>& pool, const Index (&sizes)[3], int width)
      : plane(static_cast<Index>(thread_index())), channel(remainder(pool.step / width) * width), step(pool.step) {
    for (int d = 2; d >= 0; --d) at[d] = remainder(sizes[d]);
    exists = plane < pool.n_planes;
  }

  // Divides `plane`, and returns the remainder.
  __device__ Index remainder(Index size) {
    const Index index = plane;
    plane = quotient(index, size);
    return index - plane * size;
  }

  // Returns where a position of the thread's plane and channel begins, in a dense tensor of these sizes.
  __device__ Index offset(const Index (&sizes)[3], Index d, Index h, Index w) const {
    return (((plane * sizes[0] + d) * sizes[1] + h) * sizes[2] + w) * step + channel;
  }
};

// Takes the values that are larger, and their number. As in PyTorch, the first of equal cells wins, and a NaN wins over
// every earlier cell.
template <typename T, int width>
__device__ void take_larger(T (&largest)[width], Number<T> (&winner)[width], const T (&values)[width], int number) {
  if constexpr (sizeof(T) == 2 && width % 2 == 0) {
    for (int k = 0; k < width; k += 2) {
      const auto value = pair_at(values + k);
      const unsigned taken = __hgt2_mask(value, pair_at(largest + k)) | __hneu2_mask(value, value);
      const Number<T> numbers[] = {static_cast<Number<T>>(number), static_cast<Number<T>>(number)};
      select(largest + k, values + k, taken);
      select(winner + k, numbers, taken);
    }
  } else {
    for (int k = 0; k < width; ++k) {
      const Math<T> value = widened(values[k]);
      if (value > widened(largest[k]) || value != value) {
        largest[k] = values[k];
        winner[k] = static_cast<Number<T>>(number);
      }
    }
  }
}

template <typename T, typename Index, int width>
__device__ void store_largest(const Pool<Index>& pool, const Place<Index>& place, const T (&largest)[width],
                              const Number<T> (&winner)[width]) {
  uint8_t numbers[width];
  for (int k = 0; k < width; ++k) numbers[k] = static_cast<uint8_t>(winner[k]);
  const Index to = place.offset(pool.output, place.at[0], place.at[1], place.at[2]);
  store(static_cast<T*>(pool.to) + to, largest);
  store(pool.cell + to, numbers);
}

// ---------------------------------------------------------------------------------------------- square windows

// Returns the number of the cell next to the k-th of a window that lies in the input. To compare a cell twice changes
// nothing.
template <typename Index>
__device__ int cell_within(Index begin, Index size, int k) {
  const Index last = size - 1 - begin;
  return begin + k < 0 ? static_cast<int>(-begin) : (k > last ? static_cast<int>(last) : k);
}

template <typename T, typename Index, int width, int kernel>
__global__ void __launch_bounds__(kThreads) max_pool_squares(const Pool<Index> pool) {
  const Place<Index> place(pool, pool.output, width);
  if (!place.exists) return;
  const Index top = place.at[1] * pool.stride[1] - pool.padding[1];
  const Index left = place.at[2] * pool.stride[2] - pool.padding[2];
  T values[kernel][kernel][width];
  for (int h = 0; h < kernel; ++h) {
    const Index row = top + cell_within(top, pool.input[1], h);
    const T* line = static_cast<const T*>(pool.from) + place.offset(pool.input, place.at[0], row, left);
    for (int w = 0; w < kernel; ++w) load(values[h][w], line + cell_within(left, pool.input[2], w) * place.step);
  }
  Number<T> winner[width];
  for (int h = 0; h < kernel; ++h) {
    for (int w = 0; w < kernel; ++w) {
      const int number = cell_within(top, pool.input[1], h) * kernel + cell_within(left, pool.input[2], w);
      if (h == 0 && w == 0) {
        for (int k = 0; k < width; ++k) winner[k] = static_cast<Number<T>>(number);
      } else {
        take_larger(values[0][0], winner, values[h][w], number);
      }
    }
  }
  store_largest(pool, place, values[0][0], winner);
}

// Sums the gradients of a cell's windows that the cell won, for elements of 16 bits: compares four winners at once, and
// selects two gradients. The sum of two is rounded once, as if it were computed in float32; more are.
template <int kernel, int stride, int a, int b, typename T, int windows, int width>
__device__ void sum_of_winners(T (&out)[width], const T (&grads)[windows][windows][width],
                               const uint8_t (&winners)[windows][windows][width]) {
  // The windows that hold the cell, along each dimension: those before leave it out.
  constexpr int first_i = windows - 1 - (kernel - 1 - a) / stride, first_j = windows - 1 - (kernel - 1 - b) / stride;
  constexpr int n = (windows - first_i) * (windows - first_j);
  for (int k = 0; k < width; k += 4) {
    unsigned taken[n][2];
    for (int m = 0; m < n; ++m) {
      const int i = first_i + m / (windows - first_j), j = first_j + m % (windows - first_j);
      const int number = (a + (windows - 1 - i) * stride) * kernel + b + (windows - 1 - j) * stride;
      unsigned four, pairs[2];
      memcpy(&four, winners[i][j] + k, sizeof(four));
      memcpy(pairs, grads[i][j] + k, sizeof(pairs));
      const unsigned won = __vcmpeq4(four, static_cast<unsigned>(number) * 0x01010101u);
      for (int p = 0; p < 2; ++p) taken[m][p] = where(won, p, pairs[p]);
    }
    for (int p = 0; p < 2; ++p) {
      unsigned sum = taken[0][p];
      if constexpr (n == 2) {
        sum = sum_of_pairs<T>(sum, taken[1][p]);
      } else if constexpr (n > 2) {
        T each[2];
        float sums[2] = {0, 0};
        for (int m = 0; m < n; ++m) {
          memcpy(each, &taken[m][p], sizeof(each));
          for (int e = 0; e < 2; ++e) sums[e] += widened(each[e]);
        }
        for (int e = 0; e < 2; ++e) each[e] = narrowed<T>(sums[e]);
        memcpy(&sum, each, sizeof(sum));
      }
      memcpy(out + k + 2 * p, &sum, sizeof(sum));
    }
  }
}

// A thread has stride x stride cells of the padded input, which the same windows hold.
template <typename T, typename Index, int width, int kernel, int stride>
__global__ void __launch_bounds__(kThreads)
    max_pool_square_gradients(const Pool<Index> pool, const Index tiles_high, const Index tiles_wide) {
  constexpr int windows = (kernel - 1) / stride + 1;  // along one dimension
  constexpr uint8_t none = 255;
  const Index tiles[3] = {pool.input[0], tiles_high, tiles_wide};
  const Place<Index> place(pool, tiles, width);
  if (!place.exists) return;
  T grads[windows][windows][width] = {};
  uint8_t winners[windows][windows][width];
  for (int i = 0; i < windows; ++i) {
    const Index h = place.at[1] + i - (windows - 1);
    for (int j = 0; j < windows; ++j) {
      const Index w = place.at[2] + j - (windows - 1);
      for (int k = 0; k < width; ++k) winners[i][j][k] = none;
      if (h >= 0 && h < pool.output[1] && w >= 0 && w < pool.output[2]) {
        const Index from = place.offset(pool.output, place.at[0], h, w);
        load(winners[i][j], pool.cell + from);
        load(grads[i][j], static_cast<const T*>(pool.from) + from);
      }
    }
  }
  const auto store_cell = [&](auto high, auto wide) {
    constexpr int a = decltype(high)::value, b = decltype(wide)::value;
    const Index row = place.at[1] * stride + a - pool.padding[1];
    const Index column = place.at[2] * stride + b - pool.padding[2];
    if (row < 0 || row >= pool.input[1] || column < 0 || column >= pool.input[2]) return;
    T out[width];
    if constexpr (sizeof(T) == 2 && width % 4 == 0 && windows <= 2) {
      sum_of_winners<kernel, stride, a, b>(out, grads, winners);
    } else {
      Math<T> sum[width] = {};
      for (int i = 0; i < windows; ++i) {
        const int h = a + (windows - 1 - i) * stride;
        for (int j = 0; j < windows; ++j) {
          const int w = b + (windows - 1 - j) * stride;
          if (h >= kernel || w >= kernel) continue;
          for (int k = 0; k < width; ++k) {
            if (winners[i][j][k] == h * kernel + w) sum[k] += widened(grads[i][j][k]);
          }
        }
      }
      for (int k = 0; k < width; ++k) out[k] = narrowed<T>(sum[k]);
    }
    store(static_cast<T*>(pool.to) + place.offset(pool.input, place.at[0], row, column), out);
  };
  static_assert(stride <= 2);
  constexpr std::integral_constant<int, 0> zero{};
  constexpr std::integral_constant<int, stride - 1> last{};
  store_cell(zero, zero);
  if constexpr (stride == 2) {
    store_cell(zero, last);
    store_cell(last, zero);
    store_cell(last, last);
  }
}

// ---------------------------------------------------------------------------------------------- any window

template <typename Index>
struct Range {
  Index begin, end;
};

// Returns the cells of a window that lie in the input: [begin, end) of the kernel.
template <typename Index>
__device__ Range<Index> cells_of_window(const Pool<Index>& pool, int d, Index output) {
  const Index step = pool.dilation[d], start = output * pool.stride[d] - pool.padding[d];
  const Index left = pool.input[d] - start;
  return {start < 0 ? quotient(-start + step - 1, step) : 0,
          left < pool.kernel[d] * step ? quotient(left + step - 1, step) : pool.kernel[d]};
}

// Returns the windows that may hold a cell of the input: [begin, end) of the output.
template <typename Index>
__device__ Range<Index> windows_of_cell(const Pool<Index>& pool, int d, Index input) {
  const Index stride = pool.stride[d], padded = input + pool.padding[d];
  const Index first = padded - (pool.kernel[d] - 1) * pool.dilation[d], end = quotient(padded, stride) + 1;
  return {first <= 0 ? 0 : quotient(first + stride - 1, stride), end < pool.output[d] ? end : pool.output[d]};
}

// Returns the number along one dimension of a cell in a window, or -1 if the window does not hold the cell.
template <typename Index>
__device__ Index number_in_window(const Pool<Index>& pool, int d, Index input, Index output) {
  const Index from_start = input + pool.padding[d] - output * pool.stride[d];
  const Index number = quotient(from_start, pool.dilation[d]);
  return number * pool.dilation[d] == from_start ? number : -1;
}

template <typename T, typename Index, int width>
__global__ void __launch_bounds__(kThreads) max_pool_windows(const Pool<Index> pool) {
  const Place<Index> place(pool, pool.output, width);
  if (!place.exists) return;
  Range<Index> cells[3];
  for (int d = 0; d < 3; ++d) cells[d] = cells_of_window(pool, d, place.at[d]);
  const auto at = [&](int d, Index cell) {
    return place.at[d] * pool.stride[d] - pool.padding[d] + cell * pool.dilation[d];
  };
  T largest[width], values[width];
  Number<T> winner[width];
  bool is_first = true;
  for (Index d = cells[0].begin; d < cells[0].end; ++d) {
    for (Index h = cells[1].begin; h < cells[1].end; ++h) {
      for (Index w = cells[2].begin; w < cells[2].end; ++w) {
        const int number = static_cast<int>((d * pool.kernel[1] + h) * pool.kernel[2] + w);
        load(values, static_cast<const T*>(pool.from) + place.offset(pool.input, at(0, d), at(1, h), at(2, w)));
        for (int k = 0; k < width && is_first; ++k) {
          largest[k] = values[k];
          winner[k] = static_cast<Number<T>>(number);
        }
        is_first = false;
        take_larger(largest, winner, values, number);
      }
    }
  }
  store_largest(pool, place, largest, winner);
}

template <typename T, typename Index, int width>
__global__ void __launch_bounds__(kThreads) max_pool_window_gradients(const Pool<Index> pool) {
  const Place<Index> place(pool, pool.input, width);
  if (!place.exists) return;
  Range<Index> windows[3];
  for (int d = 0; d < 3; ++d) windows[d] = windows_of_cell(pool, d, place.at[d]);
  Math<T> sum[width] = {};
  for (Index d = windows[0].begin; d < windows[0].end; ++d) {
    const Index depth = number_in_window(pool, 0, place.at[0], d);
    for (Index h = windows[1].begin; h < windows[1].end; ++h) {
      const Index height = number_in_window(pool, 1, place.at[1], h);
      for (Index w = windows[2].begin; w < windows[2].end; ++w) {
        const Index column = number_in_window(pool, 2, place.at[2], w);
        if (depth < 0 || height < 0 || column < 0) continue;
        const Index from = place.offset(pool.output, d, h, w);
        uint8_t winners[width];
        load(winners, pool.cell + from);
        T grads[width];
        load(grads, static_cast<const T*>(pool.from) + from);
        for (int k = 0; k < width; ++k) {
          if (winners[k] == (depth * pool.kernel[1] + height) * pool.kernel[2] + column) sum[k] += widened(grads[k]);
        }
      }
    }
  }
  T out[width];
  for (int k = 0; k < width; ++k) out[k] = narrowed<T>(sum[k]);
  store(static_cast<T*>(pool.to) + place.offset(pool.input, place.at[0], place.at[1], place.at[2]), out);
}

// ---------------------------------------------------------------------------------------------- launches

#ifdef IGFAST_64_BIT  // for a test, whose tensors are small
constexpr int64_t kMost32Bit = 0;
#else
constexpr int64_t kMost32Bit = INT32_MAX / 2;
#endif

int64_t volume(const int64_t (&sizes)[3]) { return sizes[0] * sizes[1] * sizes[2]; }

// Returns the size of a square window of neighbouring cells, or 0.
int64_t square_of(const MaxPoolArgs& args) {
  const bool is_2d = args.kernel[0] == 1 && args.stride[0] == 1 && args.padding[0] == 0;
  const bool is_square = args.kernel[1] == args.kernel[2] && args.dilation[1] == 1 && args.dilation[2] == 1;
  return is_2d && is_square ? args.kernel[1] : 0;
}

// Calls `of(zero, index, width)`: an element, an integer, and the channels of a thread as a constant.
template <typename Of>
const char* for_types_and_width(const MaxPoolArgs& args, const Of& of) {
  return for_dtype(args.dtype, [&](auto zero) {
    constexpr int lanes = kLanes<decltype(zero)>;
    const bool is_whole = args.channels_last && args.n_channels % lanes == 0 && is_aligned(args.from) &&
                          is_aligned(args.to) && is_aligned(args.cell);
    const int64_t n = args.n_batch * args.n_channels * std::max(volume(args.input), volume(args.output));
    using Whole = std::integral_constant<int, lanes>;
    using One = std::integral_constant<int, 1>;
    if (n < kMost32Bit) return is_whole ? of(zero, int32_t{}, Whole{}) : of(zero, int32_t{}, One{});
    return is_whole ? of(zero, int64_t{}, Whole{}) : of(zero, int64_t{}, One{});
  });
}

// Launches a kernel with one thread per `width` channels of tensors of these sizes.
template <typename Index, typename... Others>
const char* launch_places(void (*kernel)(Pool<Index>, Others...), const MaxPoolArgs& args, const int64_t (&sizes)[3],
                          int width, void* stream, Others... others) {
  const Pool<Index> pool(args);
  const int64_t blocks = n_blocks(pool.n_planes * volume(sizes) * (pool.step / (args.channels_last ? width : 1)));
  if (blocks > INT32_MAX) return "too many blocks";
  return launch(kernel, blocks, 1, stream, pool, others...);
}

template <int stride, typename Index>
const char* launch_tiles(void (*kernel)(Pool<Index>, Index, Index), const MaxPoolArgs& args, int width, void* stream) {
  const auto tiles = [&](int d) { return (args.input[d] + args.padding[d] + stride - 1) / stride; };
  const int64_t sizes[3] = {args.input[0], tiles(1), tiles(2)};
  return launch_places(kernel, args, sizes, width, stream, static_cast<Index>(sizes[1]), static_cast<Index>(sizes[2]));
}

}  // namespace
}  // namespace cuda

const char* max_pool_cuda(const MaxPoolArgs& args, void* stream) {
  return cuda::for_types_and_width(args, [&](auto zero, auto index, auto width) {
    using T = decltype(zero);
    using Index = decltype(index);
    constexpr int n = decltype(width)::value;
    const auto launch = [&](auto kernel) { return cuda::launch_places(kernel, args, args.output, n, stream); };
    switch (cuda::square_of(args)) {
      case 2: return launch(cuda::max_pool_squares<T, Index, n, 2>);
      case 3: return launch(cuda::max_pool_squares<T, Index, n, 3>);
      default: return launch(cuda::max_pool_windows<T, Index, n>);
    }
  });
}

const char* max_pool_grad_cuda(const MaxPoolArgs& args, void* stream) {
  return cuda::for_types_and_width(args, [&](auto zero, auto index, auto width) {
    using T = decltype(zero);
    using Index = decltype(index);
    constexpr int n = decltype(width)::value;
    const int64_t square = cuda::square_of(args), stride = args.stride[1] == args.stride[2] ? args.stride[1] : 0;
    const auto is = [&](int64_t kernel, int64_t step) { return square == kernel && stride == step; };
    if (is(2, 2)) return cuda::launch_tiles<2>(cuda::max_pool_square_gradients<T, Index, n, 2, 2>, args, n, stream);
    if (is(3, 2)) return cuda::launch_tiles<2>(cuda::max_pool_square_gradients<T, Index, n, 3, 2>, args, n, stream);
    if (is(3, 1)) return cuda::launch_tiles<1>(cuda::max_pool_square_gradients<T, Index, n, 3, 1>, args, n, stream);
    return cuda::launch_places(cuda::max_pool_window_gradients<T, Index, n>, args, args.input, n, stream);
  });
}

}  // namespace igfast
