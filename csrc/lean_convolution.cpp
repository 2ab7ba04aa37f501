// Lean execution of convolutions: PyTorch's forward pass, and a gradient that keeps the weight alone.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/ceil_div.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels.h"
#include "lean.h"
#include "tensors.h"

namespace igfast::lean {
namespace {

struct ConvolutionBackward final : Node {
  Shape input;
  at::DimVector stride, padding, dilation, output_padding;
  bool transposed;
  int64_t groups;

  ConvolutionBackward(const Tensor& x, const Tensor& weight, IntArrayRef stride, IntArrayRef padding,
                      IntArrayRef dilation, bool transposed, IntArrayRef output_padding, int64_t groups)
      : input(x),
        stride(at::DimVector(stride)),
        padding(at::DimVector(padding)),
        dilation(at::DimVector(dilation)),
        output_padding(at::DimVector(output_padding)),
        transposed(transposed),
        groups(groups) {
    save(weight);
  }

  bool is_plain(const Tensor& grad, const Tensor& weight) const {
    const auto dtype = weight.scalar_type();
    const auto n_dims = static_cast<size_t>(weight.dim() - 2);
    return !transposed && groups == 1 && stride.size() == n_dims && padding.size() == n_dims && grad.is_cpu() &&
           grad.numel() > 0 && weight.numel() > 0 && grad.scalar_type() == dtype &&
           (dtype == at::kDouble || (dtype == at::kFloat && products_are_precise()));
  }

  // Not where the user has matrix products, but not convolutions, computed in fewer bits.
  static bool products_are_precise() {
    const auto precision = at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL);
    return precision != at::Float32Precision::TF32 && precision != at::Float32Precision::BF16;
  }

  static bool are_all(IntArrayRef values, int64_t wanted) {
    return std::all_of(values.begin(), values.end(), [&](int64_t value) { return value == wanted; });
  }

  // Windows of one cell, whose gradients need not be added up. Of PyTorch's time for channels-last images, on 2 cores:
  // 0.6 to 1.0 for 256 channels and more, up to 1.3 for 64. Where windows are apart, PyTorch takes the input's size
  // once more as scratch memory.
  bool is_product(const Tensor& grad, const Tensor& weight) const {
    constexpr int64_t kManyChannels = 256;
    return is_plain(grad, weight) && weight.size(1) >= kManyChannels && are_all(weight.sizes().slice(2), 1) &&
           are_all(padding, 0) && input.strides[1] == 1 && channels_to_end(grad).is_contiguous();
  }

  Tensor gradient_by_product(const Tensor& grad, const Tensor& weight) const {
    const Tensor product = at::matmul(channels_to_end(grad), weight.flatten(1));
    if (are_all(stride, 1)) return in_layout(product);
    Tensor result = at::zeros(channels_to_end_of(input.sizes), input.options), seen = result;
    for (int64_t d = 0; d < weight.dim() - 2; ++d) seen = seen.slice(1 + d, 0, input.sizes[2 + d], stride[d]);
    seen.copy_(product);
    return in_layout(result);
  }

  // PyTorch computes 16 channels of the input at a time, also where an image has three. Of its time, on 2 cores: 0.4
  // for the first convolution of a ResNet, 0.6 of a VGG; but 1.1 to 1.5 from 8 channels on, and up to 1.6 where the
  // output has 8: those windows take longer to write and read once more than to compute. Windows that do not overlap
  // are written in long stretches: 0.1 for patches of 16x16, of any number of channels. A 1-d convolution has one line
  // for each example, and nothing to share among threads.
  bool is_by_windows(const Tensor& grad, const Tensor& weight) const {
    constexpr int64_t kFewChannels = 4, kLongLine = 4, kManyOutputs = 16;
    const int64_t channels = weight.size(1), width = weight.size(-1), n_dims = weight.dim() - 2;
    if (!is_plain(grad, weight) || n_dims < 2 || n_dims > 3 || !are_all(dilation, 1)) return false;
    if (weight.size(0) < kManyOutputs || are_all(weight.sizes().slice(2), 1)) return false;
    if (output_line_bytes(grad, weight) > kLongestOutputLine) return false;
    bool are_apart = width >= kLongLine;
    for (int64_t d = 0; d < n_dims; ++d) are_apart = are_apart && stride[d] >= weight.size(2 + d);
    return are_apart || (channels <= kFewChannels && channels * width >= kLongLine);
  }

  static constexpr int64_t kLongestOutputLine = 1 << 22;  // bytes

  // Bytes of the windows of one line of the output.
  static int64_t output_line_bytes(const Tensor& grad, const Tensor& weight) {
    return grad.size(-1) * (weight.numel() / weight.size(0)) * static_cast<int64_t>(weight.itemsize());
  }

  // Of 2-d and 3-d convolutions alike: a 2-d one has a depth of 1.
  WindowArgs window_args(const Tensor& grad, const Tensor& weight) const {
    WindowArgs args{};
    args.dtype = dtype_of("lean_convolution", "weight", weight);
    args.channels = weight.size(1);
    const int64_t missing = 5 - weight.dim();
    for (int64_t d = 0; d < 3; ++d) {
      const bool exists = d >= missing;
      args.input[d] = exists ? input.sizes[2 + d - missing] : 1;
      args.output[d] = exists ? grad.size(2 + d - missing) : 1;
      args.kernel[d] = exists ? weight.size(2 + d - missing) : 1;
      args.stride[d] = exists ? stride[d - missing] : 1;
      args.padding[d] = exists ? padding[d - missing] : 0;
    }
    return args;
  }

  // The gradients of all windows as one matrix product, added up where they overlap: a band of the output at a time, so
  // that they are still in the cache.
  Tensor gradient_by_windows(const Tensor& grad, const Tensor& weight) const {
    constexpr int64_t kBandBytes = 1 << 19, kMostThreads = 16;  // for each thread, as far as those share a product
    WindowArgs args = window_args(grad, weight);
    const Tensor kernel = channels_to_end(weight).reshape({weight.size(0), -1});
    const int64_t width = args.output[2], lines_each = args.output[0] * args.output[1];
    const int64_t n_lines = grad.size(0) * lines_each;
    const int64_t band_bytes = kBandBytes * std::min<int64_t>(at::get_num_threads(), kMostThreads);
    const int64_t band = std::clamp<int64_t>(band_bytes / output_line_bytes(grad, weight), 1, n_lines);
    // A matrix product reads an example as (channels, positions), too, but several only as (positions, channels).
    const bool one_by_one = band <= lines_each && grad.is_contiguous();
    const Tensor matrix =
        one_by_one ? grad.flatten(2).transpose(1, 2) : channels_to_end(grad).reshape({1, -1, grad.size(1)});

    Tensor result = at::zeros(channels_to_end_of(input.sizes), input.options);
    const Tensor windows = at::empty({band * width, kernel.size(1)}, kernel.options());
    args.windows = windows.const_data_ptr();
    args.to = result.mutable_data_ptr();
    for (int64_t begin = 0; begin < n_lines; begin = args.output_end) {
      const int64_t example = begin / lines_each;
      args.output_begin = begin;
      args.output_end = std::min(begin + band, one_by_one ? (example + 1) * lines_each : n_lines);
      const int64_t skipped = one_by_one ? example * lines_each : 0, length = (args.output_end - begin) * width;
      Tensor product = windows.narrow(0, 0, length);
      at::mm_out(product, matrix.select(0, one_by_one ? example : 0).narrow(0, (begin - skipped) * width, length),
                 kernel);
      add_band(args);
    }
    return in_layout(result);
  }

  static void add_band(WindowArgs& args) {
    const int64_t lines_each = args.output[0] * args.output[1];
    args.first_example = args.output_begin / lines_each;
    const int64_t n_examples = (args.output_end - 1) / lines_each - args.first_example + 1;
    args.input_begin = 0;
    args.input_end = args.input[0] * args.input[1];
    if (n_examples == 1) {  // some depths of the output, or some heights of its only one, reach some of the input
      const int d = args.input[0] == 1 && args.output[0] == 1 ? 1 : 0;
      const int64_t outputs = d == 0 ? args.output[1] : 1, inputs = d == 0 ? args.input[1] : 1;
      const int64_t first = args.output_begin % lines_each / outputs,
                    last = (args.output_end - 1) % lines_each / outputs;
      const int64_t begin = first * args.stride[d] - args.padding[d];
      const int64_t end = last * args.stride[d] - args.padding[d] + args.kernel[d];
      args.input_begin = std::clamp<int64_t>(begin, 0, args.input[d]) * inputs;
      args.input_end = std::clamp<int64_t>(end, 0, args.input[d]) * inputs;
    }
    const int64_t per_line = args.output[2] * args.kernel[2] * args.channels;
    const int64_t n_lines = n_examples * (args.input_end - args.input_begin);
    for_items(n_lines, n_lines * per_line, [&](int64_t begin, int64_t end) { add_windows_cpu(args, begin, end); });
  }

  // Windows of 3x3 cells side by side. Of PyTorch's time for channels-last images, on 2 cores: 0.6 to 0.7 for 128
  // channels and more, 0.8 to 0.9 for 64. Of its error in the Euclidean norm, on random numbers, 0.4 to 0.6, because
  // fewer terms are added up; but tiles mix the cells of a window, so that rounding is relative to the largest weight
  // of a window, also where a smaller one alone counts.
  bool is_by_tiles(const Tensor& grad, const Tensor& weight) const {
    constexpr int64_t kManyChannels = 64;
    return is_plain(grad, weight) && weight.dim() == 4 && are_all(weight.sizes().slice(2), 3) && are_all(stride, 1) &&
           are_all(dilation, 1) && weight.size(0) >= kManyChannels && weight.size(1) >= kManyChannels &&
           input.strides[1] == 1 && channels_to_end(grad).is_contiguous() && n_cells() >= kFewestCells &&
           n_cells() * 2 >= n_tiles() * 5 && tile_bytes(weight) <= std::max(kTileBytes, n_cells() * cell_bytes(weight));
  }

  static constexpr int64_t kFewestCells = 1024;   // for the weights to be worth transforming
  static constexpr int64_t kTileBytes = 1 << 26;  // of scratch memory, or as many as the gradient itself takes
  static constexpr int64_t kMostBandTiles = 512;  // enough to be worth putting the weights in order for

  int64_t n_cells() const { return input.sizes[0] * input.sizes[2] * input.sizes[3]; }
  static int64_t cell_bytes(const Tensor& weight) { return weight.size(1) * static_cast<int64_t>(weight.itemsize()); }

  // Bytes of the tiles of a weight and of a band of an image, or of the weight's while they are made.
  int64_t tile_bytes(const Tensor& weight) const {
    const int64_t outputs = weight.size(0), inputs = weight.size(1), of_weight = 16 * outputs * inputs;
    return std::max(of_weight + 16 * band_tiles() * (outputs + inputs), of_weight + 9 * outputs * inputs) *
           static_cast<int64_t>(weight.itemsize());
  }

  int64_t tiles_of(int64_t d) const { return (input.sizes[2 + d] + 1) / 2; }
  int64_t n_tiles() const { return input.sizes[0] * tiles_of(0) * tiles_of(1); }
  int64_t band_tiles() const { return at::ceil_div(n_tiles(), at::ceil_div(n_tiles(), kMostBandTiles)); }

  // What a weight (outputs, inputs, 3, 3) multiplies tiles with, (16, outputs, inputs): G w G^T with w turned around.
  static Tensor tiles_of_weight(const Tensor& weight) {
    constexpr double kG[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    Tensor transform = at::empty({16, 9}, at::kDouble);
    auto* to = transform.mutable_data_ptr<double>();
    for (int cell = 0; cell < 16; ++cell) {
      for (int k = 0; k < 9; ++k) *to++ = kG[cell / 4][2 - k / 3] * kG[cell % 4][2 - k % 3];
    }
    const Tensor by_cell = weight.permute({2, 3, 0, 1}).reshape({9, -1});
    return at::mm(transform.to(weight.scalar_type()), by_cell).view({16, weight.size(0), weight.size(1)});
  }

  // Winograd's F(2x2, 3x3) of the gradient, which is a convolution with the weight turned around: 16 products instead
  // of 36 for four cells. A band of tiles at a time. Source: Lavin, Gray 2016, arXiv:1509.09308, section 4.1.
  Tensor gradient_by_tiles(const Tensor& grad, const Tensor& weight) const {
    const Tensor image = channels_to_end(grad), weights = tiles_of_weight(weight);
    Tensor result = at::empty({grad.size(0), input.sizes[2], input.sizes[3], weight.size(1)}, input.options);
    WinogradArgs from = tile_args(image), to = tile_args(result);
    for (int64_t d = 0; d < 2; ++d) from.before[d] = 2 - padding[d];
    const int64_t band = band_tiles(), n_all = n_tiles();
    const Tensor tiles = at::empty({16 * band * weight.size(0)}, input.options);
    const Tensor products = at::empty({16 * band * weight.size(1)}, input.options);
    from.tiles = tiles.mutable_data_ptr();
    to.tiles = products.mutable_data_ptr();
    for (int64_t begin = 0; begin < n_all; begin += band) {
      from.first_tile = to.first_tile = begin;
      const int64_t n = from.n_tiles = to.n_tiles = std::min(band, n_all - begin);
      const auto part = [n](const Tensor& whole, int64_t channels) {
        return whole.narrow(0, 0, 16 * n * channels).view({16, n, channels});
      };
      Tensor product = part(products, weight.size(1));
      for_items(n, 16 * n * weight.size(0), [&](int64_t i, int64_t end) { winograd_tiles_cpu(from, i, end); });
      at::bmm_out(product, part(tiles, weight.size(0)), weights);
      for_items(n, product.numel(), [&](int64_t i, int64_t end) { winograd_image_cpu(to, i, end); });
    }
    return in_layout(result);
  }

  // Of an image (batch, height, width, channels).
  WinogradArgs tile_args(const Tensor& image) const {
    WinogradArgs args{};
    args.dtype = dtype_of("lean_convolution", "grad", image);
    args.n_channels = image.size(3);
    args.height = image.size(1);
    args.width = image.size(2);
    args.tiles_high = tiles_of(0);
    args.tiles_wide = tiles_of(1);
    args.image = const_cast<void*>(image.const_data_ptr());
    return args;
  }

  static Tensor channels_to_end(const Tensor& tensor) { return tensor.movedim(1, -1); }

  static at::DimVector channels_to_end_of(IntArrayRef sizes) {
    at::DimVector result(sizes);
    std::rotate(result.begin() + 1, result.begin() + 2, result.end());
    return result;
  }

  // What has its channels at the end, shaped and laid out as the input. Not as a view that autograd keeps the base of:
  // who gets the result may overwrite it.
  Tensor in_layout(const Tensor& channels_last) const {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const Tensor result = channels_last.movedim(-1, 1);
    bool is_same = true;
    for (int64_t d = 0; d < result.dim(); ++d) {
      is_same = is_same && (result.size(d) == 1 || result.stride(d) == input.strides[d]);
    }
    if (is_same) return result.as_strided(input.sizes, input.strides);
    return at::empty_strided(input.sizes, input.strides, input.options).copy_(result);
  }

  Tensor input_gradient(Tensor grad) override {
    const Tensor weight = unpack(0);
    if (is_product(grad, weight)) return gradient_by_product(grad, weight);
    if (is_by_windows(grad, weight)) return gradient_by_windows(grad, weight);
    if (is_by_tiles(grad, weight)) {
      try {
        return gradient_by_tiles(grad, weight);
      } catch (const c10::OutOfMemoryError&) {  // of a budget that may do without tiles
      }
    }
    return std::get<0>(at::convolution_backward(grad, input.placeholder(), weight, at::OptionalIntArrayRef{}, stride,
                                                padding, dilation, transposed, output_padding, groups,
                                                {true, false, false}));
  }
};

Tensor convolution(const Tensor& input, const Tensor& weight, const optional<Tensor>& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
                   int64_t groups) {
  return run(
      input,
      [&] {
        return at::convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups);
      },
      [&] {
        return make_node<ConvolutionBackward>(input, weight, stride, padding, dilation, transposed, output_padding,
                                              groups);
      },
      weight, bias);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(igfast, m) {
  m.def(
      "lean_convolution(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "bool transposed, int[] output_padding, int groups) -> Tensor");
}

TORCH_LIBRARY_IMPL(igfast, CompositeImplicitAutograd, m) { m.impl("lean_convolution", &convolution); }

}  // namespace igfast::lean
