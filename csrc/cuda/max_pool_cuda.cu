// Max pooling and its gradient, which needs one byte per output: the number of the largest cell in the window, counted
// along the width first. A thread has one output or, in the gradient, one input cell. If channels-last, a thread has
// one vector of channels of that position. The gradient gathers, so the gradient is deterministic.
#include <cmath>

#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

// A division takes as long as the rest of a window, and almost all strides are 1 or 2.
template <typename Index>
__device__ Index divided(Index n, Index by) {
  return by == 1 ? n : (by == 2 ? n >> 1 : n / by);
}

// The position of a thread's elements. A plane is one channel of an example or, if channels-last, a whole example. A
// block lies within one depth of one plane, which saves divisions.
template <typename Index>
struct Place {
  int64_t plane;
  Index channel, step, at[3];  // `step`: elements between neighbouring positions
  bool exists;

  __device__ Place(const MaxPoolArgs& args, const int64_t (&sizes)[3], unsigned blocks_each, int width) {
    const unsigned depths = blockIdx.x / blocks_each;
    plane = depths / static_cast<unsigned>(sizes[0]);
    at[0] = static_cast<Index>(depths % static_cast<unsigned>(sizes[0]));
    Index index =
        static_cast<Index>(blockIdx.x % blocks_each) * static_cast<Index>(kThreads) + static_cast<Index>(threadIdx.x);
    channel = 0;
    step = 1;
    if (args.channels_last) {
      const Index groups = static_cast<Index>(args.n_channels) / width;
      const Index position = index / groups;
      channel = (index - position * groups) * width;
      step = static_cast<Index>(args.n_channels);
      index = position;
    }
    at[1] = index / static_cast<Index>(sizes[2]);
    at[2] = index - at[1] * static_cast<Index>(sizes[2]);
    exists = at[1] < static_cast<Index>(sizes[1]);
  }

  // Returns where, in a dense tensor of these sizes, the thread's part of its plane begins.
  __device__ int64_t begin(const int64_t (&sizes)[3]) const {
    return plane * (sizes[0] * sizes[1] * sizes[2] * step) + channel;
  }

  // Returns the offset of a position from begin().
  __device__ Index offset(const int64_t (&sizes)[3], Index d, Index h, Index w) const {
    return ((d * static_cast<Index>(sizes[1]) + h) * static_cast<Index>(sizes[2]) + w) * step;
  }
};

template <typename Index>
struct Range {
  Index begin, end;
};

// Returns the cells of a window that lie in the input: [begin, end) of the kernel.
template <typename Index>
__device__ Range<Index> cells_of_window(const MaxPoolArgs& args, int d, Index output) {
  const auto step = static_cast<Index>(args.dilation[d]), kernel = static_cast<Index>(args.kernel[d]);
  const Index start = output * static_cast<Index>(args.stride[d]) - static_cast<Index>(args.padding[d]);
  const Index left = static_cast<Index>(args.input[d]) - start;
  return {start < 0 ? divided(-start + step - 1, step) : 0,
          left < kernel * step ? divided(left + step - 1, step) : kernel};
}

// Returns the windows that may hold a cell of the input: [begin, end) of the output.
template <typename Index>
__device__ Range<Index> windows_of_cell(const MaxPoolArgs& args, int d, Index input) {
  const auto stride = static_cast<Index>(args.stride[d]), output = static_cast<Index>(args.output[d]);
  const Index padded = input + static_cast<Index>(args.padding[d]);
  const Index first = padded - (static_cast<Index>(args.kernel[d]) - 1) * static_cast<Index>(args.dilation[d]);
  const Index end = divided(padded, stride) + 1;
  return {first <= 0 ? 0 : divided(first + stride - 1, stride), end < output ? end : output};
}

// Returns the number along one dimension of a cell in a window, or -1 if the window does not hold the cell.
template <typename Index>
__device__ Index number_in_window(const MaxPoolArgs& args, int d, Index input, Index output) {
  const Index from_start = input + static_cast<Index>(args.padding[d]) - output * static_cast<Index>(args.stride[d]);
  const auto step = static_cast<Index>(args.dilation[d]);
  if (step == 1) return from_start;
  return from_start % step == 0 ? from_start / step : -1;
}

template <typename T, int width, typename Index>
__global__ void __launch_bounds__(kThreads) max_pool_outputs(const MaxPoolArgs args, const unsigned blocks_each) {
  const Place<Index> place(args, args.output, blocks_each, width);
  if (!place.exists) return;
  Range<Index> cells[3];
  Index start[3];
  for (int d = 0; d < 3; ++d) {
    cells[d] = cells_of_window<Index>(args, d, place.at[d]);
    start[d] = place.at[d] * static_cast<Index>(args.stride[d]) - static_cast<Index>(args.padding[d]);
  }
  const auto number = [&](Index d, Index h, Index w) {
    return (d * static_cast<Index>(args.kernel[1]) + h) * static_cast<Index>(args.kernel[2]) + w;
  };
  const T* from = static_cast<const T*>(args.from) + place.begin(args.input);
  Math<T> largest[width];
  Index winner[width];
  for (int k = 0; k < width; ++k) {
    largest[k] = -INFINITY;
    winner[k] = number(cells[0].begin, cells[1].begin, cells[2].begin);
  }
  for (Index d = cells[0].begin; d < cells[0].end; ++d) {
    for (Index h = cells[1].begin; h < cells[1].end; ++h) {
      const T* line = from + place.offset(args.input, start[0] + d * static_cast<Index>(args.dilation[0]),
                                          start[1] + h * static_cast<Index>(args.dilation[1]), start[2]);
      for (Index w = cells[2].begin; w < cells[2].end; ++w) {
        T values[width];
        load(values, line + w * static_cast<Index>(args.dilation[2]) * place.step);
        const Index cell = number(d, h, w);
        for (int k = 0; k < width; ++k) {
          const Math<T> value = widened(values[k]);
          // As in PyTorch, the first of equal cells wins, and a NaN wins over every earlier cell.
          if (value > largest[k] || value != value) {
            largest[k] = value;
            winner[k] = cell;
          }
        }
      }
    }
  }
  T out[width];
  uint8_t numbers[width];
  for (int k = 0; k < width; ++k) {
    out[k] = narrowed<T>(largest[k]);
    numbers[k] = static_cast<uint8_t>(winner[k]);
  }
  const int64_t to = place.begin(args.output) + place.offset(args.output, place.at[0], place.at[1], place.at[2]);
  store(static_cast<T*>(args.to) + to, out);
  store_bytes(args.cell + to, numbers);
}

template <typename T, int width, typename Index>
__global__ void __launch_bounds__(kThreads) max_pool_gradients(const MaxPoolArgs args, const unsigned blocks_each) {
  const Place<Index> place(args, args.input, blocks_each, width);
  if (!place.exists) return;
  Range<Index> windows[3];
  for (int d = 0; d < 3; ++d) windows[d] = windows_of_cell<Index>(args, d, place.at[d]);
  const int64_t first = place.begin(args.output);
  const T* from = static_cast<const T*>(args.from) + first;
  const uint8_t* winners = args.cell + first;
  Math<T> sum[width] = {};
  for (Index d = windows[0].begin; d < windows[0].end; ++d) {
    const Index depth = number_in_window<Index>(args, 0, place.at[0], d);
    for (Index h = windows[1].begin; h < windows[1].end; ++h) {
      const Index height = number_in_window<Index>(args, 1, place.at[1], h);
      for (Index w = windows[2].begin; w < windows[2].end; ++w) {
        const Index column = number_in_window<Index>(args, 2, place.at[2], w);
        if (depth < 0 || height < 0 || column < 0) continue;
        const Index cell =
            (depth * static_cast<Index>(args.kernel[1]) + height) * static_cast<Index>(args.kernel[2]) + column;
        const Index at = place.offset(args.output, d, h, w);
        uint8_t winner[width];
        load_bytes(winner, winners + at);
        T grads[width];
        load(grads, from + at);
        for (int k = 0; k < width; ++k) {
          if (winner[k] == cell) sum[k] += widened(grads[k]);
        }
      }
    }
  }
  T out[width];
  for (int k = 0; k < width; ++k) out[k] = narrowed<T>(sum[k]);
  const Index to = place.offset(args.input, place.at[0], place.at[1], place.at[2]);
  store(static_cast<T*>(args.to) + place.begin(args.input) + to, out);
}

int64_t volume(const int64_t (&sizes)[3]) { return sizes[0] * sizes[1] * sizes[2]; }

// Calls `of(width, index)`: the channels of a thread, and the type that counts the elements of a plane. A 64-bit
// division takes longer than a window of a few cells.
template <typename T, typename Of>
const char* for_width_and_index(const MaxPoolArgs& args, const Of& of) {
  constexpr int lanes = kLanes<T>;
  const bool is_whole = args.channels_last && args.n_channels % lanes == 0 && is_aligned(args.from) &&
                        is_aligned(args.to) && is_aligned(args.cell);
  const int64_t n_plane =
      std::max(volume(args.input), volume(args.output)) * (args.channels_last ? args.n_channels : 1);
  using Whole = std::integral_constant<int, lanes>;
  using One = std::integral_constant<int, 1>;
  if (n_plane < INT32_MAX / 2) return is_whole ? of(Whole{}, int32_t{}) : of(One{}, int32_t{});
  return is_whole ? of(Whole{}, int64_t{}) : of(One{}, int64_t{});
}

// Launches `kernel` with one thread per `width` elements of tensors of these sizes.
template <typename Kernel>
const char* launch_planes(const Kernel& kernel, const MaxPoolArgs& args, const int64_t (&sizes)[3], int64_t width,
                          void* stream) {
  const int64_t n_planes = args.n_batch * (args.channels_last ? 1 : args.n_channels);
  const int64_t n_each = sizes[1] * sizes[2] * (args.channels_last ? args.n_channels / width : 1);
  const int64_t blocks_each = n_blocks(n_each), blocks = n_planes * sizes[0] * blocks_each;
  if (blocks > INT32_MAX) return "too many blocks";
  return launch(kernel, blocks, 1, stream, args, static_cast<unsigned>(blocks_each));
}

}  // namespace
}  // namespace cuda

const char* max_pool_cuda(const MaxPoolArgs& args, void* stream) {
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    return cuda::for_width_and_index<T>(args, [&](auto width, auto index) {
      constexpr auto kernel = cuda::max_pool_outputs<T, decltype(width)::value, decltype(index)>;
      return cuda::launch_planes(kernel, args, args.output, width, stream);
    });
  });
}

const char* max_pool_grad_cuda(const MaxPoolArgs& args, void* stream) {
  return cuda::for_dtype(args.dtype, [&](auto zero) {
    using T = decltype(zero);
    return cuda::for_width_and_index<T>(args, [&](auto width, auto index) {
      constexpr auto kernel = cuda::max_pool_gradients<T, decltype(width)::value, decltype(index)>;
      return cuda::launch_planes(kernel, args, args.input, width, stream);
    });
  });
}

}  // namespace igfast
