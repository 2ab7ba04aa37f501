// The winners of pooling windows, between PyTorch's int64 positions and one byte each.
#include "../kernels.h"

namespace igfast {
namespace {

// Calls `each(array_offset, window_start)` for all outputs of one work item; window_start is the flat position of the
// window's first cell in the input, which lies outside of it where there is padding.
template <typename Each>
void for_each_output(const PoolArgs& args, int64_t item, const Each& each) {
  const auto& in = args.input;
  const auto& out = args.output;
  const int64_t height = item % out[1], depth = item / out[1] % out[0], batch = item / out[1] / out[0];
  const int64_t row_start =
      ((depth * args.stride[0] - args.padding[0]) * in[1] + (height * args.stride[1] - args.padding[1])) * in[2];
  const int64_t row = batch * args.strides[0] + depth * args.strides[2] + height * args.strides[3];
  const auto output = [&](int64_t channel, int64_t width) {
    each(row + channel * args.strides[1] + width * args.strides[4],
         row_start + width * args.stride[2] - args.padding[2]);
  };
  if (args.strides[1] < args.strides[4]) {  // channels-last: along memory
    for (int64_t width = 0; width < out[2]; ++width) {
      for (int64_t channel = 0; channel < args.n_channels; ++channel) output(channel, width);
    }
  } else {
    for (int64_t channel = 0; channel < args.n_channels; ++channel) {
      for (int64_t width = 0; width < out[2]; ++width) output(channel, width);
    }
  }
}

}  // namespace

void pool_cells_from_positions_cpu(const PoolArgs& args, int64_t begin, int64_t end) {
  const int64_t plane_step = args.dilation[0] * args.input[1] * args.input[2];
  const int64_t row_step = args.dilation[1] * args.input[2];
  for (int64_t item = begin; item < end; ++item) {
    for_each_output(args, item, [&](int64_t offset, int64_t start) {
      int64_t rest = args.position[offset] - start;
      int64_t cell = 0;  // by subtraction: windows are small and 64-bit division is not
      for (; rest >= plane_step && args.kernel[0] > 1; rest -= plane_step) cell += args.kernel[1] * args.kernel[2];
      for (; rest >= row_step && args.kernel[1] > 1; rest -= row_step) cell += args.kernel[2];
      for (; rest > 0; rest -= args.dilation[2]) ++cell;
      args.cell[offset] = static_cast<uint8_t>(cell);
    });
  }
}

void pool_positions_from_cells_cpu(const PoolArgs& args, int64_t begin, int64_t end) {
  int64_t step[256];
  int64_t n = 0;
  for (int64_t d = 0; d < args.kernel[0]; ++d) {
    for (int64_t h = 0; h < args.kernel[1]; ++h) {
      for (int64_t w = 0; w < args.kernel[2]; ++w) {
        step[n++] =
            (d * args.dilation[0] * args.input[1] + h * args.dilation[1]) * args.input[2] + w * args.dilation[2];
      }
    }
  }
  for (int64_t item = begin; item < end; ++item) {
    for_each_output(args, item,
                    [&](int64_t offset, int64_t start) { args.position[offset] = start + step[args.cell[offset]]; });
  }
}

}  // namespace igfast
