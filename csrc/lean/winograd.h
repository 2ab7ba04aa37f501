// The input's gradient of a 3x3 convolution by Winograd's F(2x2, 3x3). That gradient is a convolution with the flipped
// weight. Four cells take 16 products instead of 36.
//
// Time relative to PyTorch (channels-last, 2 cores): 0.6 to 0.7 with 128 channels or more, 0.8 to 0.9 with 64. Error
// relative to PyTorch (Euclidean norm, random numbers): 0.4 to 0.6, because fewer terms are summed. But tiles mix the
// cells of a window, so rounding is relative to the window's largest weight, even where only a smaller weight matters.
//
// Source: Lavin, Gray 2016, arXiv:1509.09308, section 4.1.
#pragma once

#include <ATen/ATen.h>
#include <ATen/ceil_div.h>

#include <algorithm>

#include "../kernels.h"
#include "../tensors.h"
#include "node.h"

namespace igfast::lean {

class Winograd {
 public:
  // For a convolution with stride 1, dilation 1 and a weight (outputs, inputs, 3, 3).
  Winograd(const Shape& input, IntArrayRef padding, const Tensor& weight)
      : input(input), padding(padding), weight(weight), n_outputs(weight.size(0)), n_inputs(weight.size(1)) {}

  // Whether this gradient is faster than PyTorch's and takes little memory.
  bool pays() const {
    constexpr int64_t kManyChannels = 64;
    constexpr int64_t kFewestCells = 1024;      // fewer do not pay for transforming the weight
    constexpr int64_t kScratchBytes = 1 << 26;  // or the size of the gradient, if that is larger
    const int64_t n_cells = input.sizes[0] * input.sizes[2] * input.sizes[3];
    return n_outputs >= kManyChannels && n_inputs >= kManyChannels && n_cells >= kFewestCells &&
           n_cells * 2 >= n_tiles() * 5 && scratch_bytes() <= std::max(kScratchBytes, n_cells * n_inputs * item_size());
  }

  // Returns the input's gradient, (batch, height, width, inputs), from the output's, channels-last. Tiles are processed
  // in bands, which bounds the scratch memory.
  Tensor gradient(const Tensor& output_grad) const {
    const Tensor image = output_grad.movedim(1, -1), weights = weight_tiles();
    Tensor result = at::empty({image.size(0), input.sizes[2], input.sizes[3], n_inputs}, input.options);
    WinogradArgs from = args_of(image), to = args_of(result);
    for (int64_t d = 0; d < 2; ++d) from.before[d] = 2 - padding[d];
    const int64_t band = band_tiles(), n_all = n_tiles();
    const Tensor tiles = at::empty({16 * band * n_outputs}, input.options);
    const Tensor products = at::empty({16 * band * n_inputs}, input.options);
    from.tiles = tiles.mutable_data_ptr();
    to.tiles = products.mutable_data_ptr();
    for (int64_t begin = 0; begin < n_all; begin += band) {
      from.first_tile = to.first_tile = begin;
      const int64_t n = from.n_tiles = to.n_tiles = std::min(band, n_all - begin);
      const auto part = [n](const Tensor& whole, int64_t channels) {
        return whole.narrow(0, 0, 16 * n * channels).view({16, n, channels});
      };
      Tensor product = part(products, n_inputs);
      for_items(n, 16 * n * n_outputs, [&](int64_t i, int64_t end) { winograd_tiles_cpu(from, i, end); });
      at::bmm_out(product, part(tiles, n_outputs), weights);
      for_items(n, product.numel(), [&](int64_t i, int64_t end) { winograd_image_cpu(to, i, end); });
    }
    return result;
  }

 private:
  const Shape& input;
  IntArrayRef padding;
  const Tensor& weight;
  int64_t n_outputs, n_inputs;

  int64_t item_size() const { return static_cast<int64_t>(weight.itemsize()); }
  int64_t tiles_of(int64_t d) const { return (input.sizes[2 + d] + 1) / 2; }
  int64_t n_tiles() const { return input.sizes[0] * tiles_of(0) * tiles_of(1); }

  // Tiles of a band: enough to repay packing the weight for each band's matrix products.
  int64_t band_tiles() const {
    constexpr int64_t kMostTiles = 512;
    return at::ceil_div(n_tiles(), at::ceil_div(n_tiles(), kMostTiles));
  }

  // Peak scratch memory in bytes: the weight's tiles, and a band's tiles or the reordered weight.
  int64_t scratch_bytes() const {
    const int64_t of_weight = 16 * n_outputs * n_inputs;
    return item_size() *
           std::max(of_weight + 16 * band_tiles() * (n_outputs + n_inputs), of_weight + 9 * n_outputs * n_inputs);
  }

  // Returns the tiles of the flipped weight w, (16, outputs, inputs): G w G^T.
  Tensor weight_tiles() const {
    constexpr double kG[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    Tensor transform = at::empty({16, 9}, at::kDouble);
    auto* to = transform.mutable_data_ptr<double>();
    for (int cell = 0; cell < 16; ++cell) {
      for (int k = 0; k < 9; ++k) *to++ = kG[cell / 4][2 - k / 3] * kG[cell % 4][2 - k % 3];
    }
    const Tensor by_cell = weight.permute({2, 3, 0, 1}).reshape({9, -1});
    return at::mm(transform.to(weight.scalar_type()), by_cell).view({16, n_outputs, n_inputs});
  }

  // `image` is (batch, height, width, channels).
  WinogradArgs args_of(const Tensor& image) const {
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
};

}  // namespace igfast::lean
