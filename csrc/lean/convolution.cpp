// Lean execution of convolutions: PyTorch's forward pass, and a gradient that saves only the weight.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "node.h"
#include "python.h"
#include "winograd.h"

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

  static bool are_all(IntArrayRef values, int64_t wanted) {
    return std::all_of(values.begin(), values.end(), [&](int64_t value) { return value == wanted; });
  }

  // Whether Winograd's algorithm applies: to a dense 3x3 convolution of channels-last images on the CPU. Not to float32
  // if the user lets matrix products use TF32 or bfloat16: that setting is not for convolutions.
  bool is_for_winograd(const Tensor& grad, const Tensor& weight) const {
    const auto dtype = weight.scalar_type();
    const auto precision = at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL);
    const bool is_exact = precision != at::Float32Precision::TF32 && precision != at::Float32Precision::BF16;
    return !transposed && groups == 1 && weight.dim() == 4 && are_all(weight.sizes().slice(2), 3) &&
           are_all(stride, 1) && are_all(dilation, 1) && padding.size() == 2 && grad.is_cpu() && grad.numel() > 0 &&
           weight.numel() > 0 && grad.scalar_type() == dtype &&
           (dtype == at::kDouble || (dtype == at::kFloat && is_exact)) && input.strides[1] == 1 &&
           grad.movedim(1, -1).is_contiguous();
  }

  // Returns a channels-last gradient with the shape and layout of the input. Autograd must not record the result as a
  // view, because the next node may overwrite the result.
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

  // Returns the convolution of a gradient with the weight that goes the other way. Where strides make several sizes
  // possible, `missing` brings the result to at least the size of the input.
  Tensor of_transposed(const Tensor& grad, const Tensor& weight) const {
    at::DimVector missing(stride.size(), 0);
    for (size_t d = 0; d < stride.size() && !transposed; ++d) {
      const int64_t left = input.sizes[2 + d] + 2 * padding[d] - dilation[d] * (weight.size(2 + d) - 1) - 1;
      missing[d] = left % stride[d];
    }
    const at::AutoDispatchBelowADInplaceOrView guard;  // no result is recorded as a view, as in in_layout
    Tensor result = at::convolution(grad, weight, {}, stride, padding, dilation, !transposed, missing, groups);
    for (int64_t d = 2; d < result.dim(); ++d) {
      if (result.size(d) > input.sizes[d]) result = result.narrow(d, 0, input.sizes[d]);
    }
    return result;
  }

  Tensor input_gradient(Tensor grad) override {
    const Tensor weight = unpack(0);
    if (is_for_winograd(grad, weight)) {
      const Winograd winograd(input, padding, weight);
      try {
        if (winograd.pays()) return in_layout(winograd.gradient(grad));
      } catch (const c10::OutOfMemoryError&) {  // without scratch memory, the gradient may fit the budget
      }
    }
    // On a GPU, a placeholder would be memory. A dense convolution's gradient is the transposed convolution, which
    // needs no input. For convolutions in groups, PyTorch has faster kernels of its own behind convolution_backward.
    if (grad.is_cuda() && groups == 1 && grad.numel() > 0) return of_transposed(grad, weight);
    return std::get<0>(at::convolution_backward(grad, input.placeholder(), weight, at::OptionalIntArrayRef{}, stride,
                                                padding, dilation, transposed, output_padding, groups,
                                                {true, false, false}));
  }
};

Tensor convolution(const Tensor& input, const Tensor& weight, const optional<Tensor>& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef output_padding,
                   int64_t groups) {
  const size_t n_dims = input.dim() > 2 ? input.dim() - 2 : 0;
  TORCH_CHECK_VALUE(
      stride.size() == n_dims && padding.size() == n_dims && dilation.size() == n_dims,
      "igfast::lean_convolution: stride, padding and dilation must have a number for each size of the input, got ",
      input.sizes(), ", ", stride, ", ", padding, " and ", dilation);
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

void define_convolution(pybind11::module& m) { expose(m, "lean_convolution", &convolution); }

}  // namespace igfast::lean
