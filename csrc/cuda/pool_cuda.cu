// The winners of pooling windows, between PyTorch's int64 positions and one byte each.
#include "device.cuh"

namespace igfast {
namespace cuda {
namespace {

struct Output {
  int64_t offset;  // of the element in both arrays
  int64_t start;   // flat position of the window's first cell; outside of the input where there is padding
};

__device__ inline Output output_at(const PoolArgs& args, int64_t index) {
  const auto& sizes = args.output;
  const auto next = [&](int64_t size) {
    const int64_t at = index % size;
    index /= size;
    return at;
  };
  const bool channels_last = args.strides[1] < args.strides[4];  // threads go along memory
  int64_t channel = channels_last ? next(args.n_channels) : 0;
  const int64_t width = next(sizes[2]), height = next(sizes[1]), depth = next(sizes[0]);
  if (!channels_last) channel = next(args.n_channels);
  const int64_t batch = index;
  return {batch * args.strides[0] + channel * args.strides[1] + depth * args.strides[2] + height * args.strides[3] +
              width * args.strides[4],
          ((depth * args.stride[0] - args.padding[0]) * args.input[1] + height * args.stride[1] - args.padding[1]) *
                  args.input[2] +
              width * args.stride[2] - args.padding[2]};
}

int64_t n_outputs(const PoolArgs& args) {
  return args.n_batch * args.n_channels * args.output[0] * args.output[1] * args.output[2];
}

__global__ void __launch_bounds__(kThreads) cells_from_positions(const PoolArgs args, const int64_t n) {
  const int64_t index = thread_index();
  if (index >= n) return;
  const Output output = output_at(args, index);
  const int64_t plane_step = args.dilation[0] * args.input[1] * args.input[2];
  const int64_t row_step = args.dilation[1] * args.input[2];
  int64_t rest = args.position[output.offset] - output.start;
  int64_t cell = 0;  // by subtraction: windows are small and 64-bit division is not
  for (; rest >= plane_step && args.kernel[0] > 1; rest -= plane_step) cell += args.kernel[1] * args.kernel[2];
  for (; rest >= row_step && args.kernel[1] > 1; rest -= row_step) cell += args.kernel[2];
  for (; rest > 0; rest -= args.dilation[2]) ++cell;
  args.cell[output.offset] = static_cast<uint8_t>(cell);
}

__global__ void __launch_bounds__(kThreads) positions_from_cells(const PoolArgs args, const int64_t n) {
  const int64_t index = thread_index();
  if (index >= n) return;
  const Output output = output_at(args, index);
  const int cell = args.cell[output.offset];
  const int width = static_cast<int>(args.kernel[2]), height = static_cast<int>(args.kernel[1]);
  const int64_t d = cell / (width * height), h = cell / width % height, w = cell % width;
  args.position[output.offset] = output.start +
                                 (d * args.dilation[0] * args.input[1] + h * args.dilation[1]) * args.input[2] +
                                 w * args.dilation[2];
}

}  // namespace
}  // namespace cuda

const char* pool_cells_from_positions_cuda(const PoolArgs& args, void* stream) {
  const int64_t n = cuda::n_outputs(args);
  return cuda::launch(cuda::cells_from_positions, cuda::n_blocks(n), 1, stream, args, n);
}

const char* pool_positions_from_cells_cuda(const PoolArgs& args, void* stream) {
  const int64_t n = cuda::n_outputs(args);
  return cuda::launch(cuda::positions_from_cells, cuda::n_blocks(n), 1, stream, args, n);
}

}  // namespace igfast
