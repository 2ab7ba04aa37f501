// Lean execution of batch normalisation in eval mode: the gradient saves only constants of the channels. On the CPU the
// forward pass is PyTorch's; CUDA has a kernel.
#include <ATen/ATen.h>
#include <ATen/OpMathType.h>
#include <ATen/TensorSubclassLikeUtils.h>
#include <torch/library.h>

#include "../kernels.h"
#include "../on_cuda.h"
#include "../tensors.h"
#include "node.h"
#include "python.h"

namespace igfast::lean {
namespace {

// The constants of a batch norm. The gradient needs no mean and no bias.
struct Constants {
  optional<Tensor> weight, bias, mean;
  Tensor variance;
  double eps;
};

bool is_channels_last(const Tensor& x) {
  return x.is_contiguous(at::MemoryFormat::ChannelsLast) || x.is_contiguous(at::MemoryFormat::ChannelsLast3d);
}

bool has_cuda_kernel(const Tensor& x, const Constants& constants) {
  const auto fits = [&](const optional<Tensor>& of) {
    return !of.has_value() || (of->device() == x.device() && of->scalar_type() == x.scalar_type() &&
                               of->is_contiguous() && of->numel() == x.size(1));
  };
  return kHasCuda && x.is_cuda() && !at::isTensorSubclassLike(x) && x.dim() >= 2 && x.numel() > 0 &&
         (x.is_contiguous() || is_channels_last(x)) && fits(constants.weight) && fits(constants.bias) &&
         fits(constants.mean) && fits(constants.variance);
}

BatchNormArgs batch_norm_args(const Tensor& from, const Tensor& to, const Constants& constants) {
  const auto data_of = [](const optional<Tensor>& of) { return of.has_value() ? of->const_data_ptr() : nullptr; };
  BatchNormArgs args{};
  args.dtype = dtype_of("lean_batch_norm", "input", from);
  args.channels_last = from.dim() == 2 || !from.is_contiguous();
  args.n_channels = from.size(1);
  args.n_positions = from.numel() / from.size(0) / from.size(1);
  args.n_elements = from.numel();
  args.from = from.const_data_ptr();
  args.to = to.mutable_data_ptr();
  args.weight = data_of(constants.weight);
  args.bias = data_of(constants.bias);
  args.mean = data_of(constants.mean);
  args.variance = data_of(constants.variance);
  args.eps = constants.eps;
  return args;
}

struct BatchNormBackward final : Node {
  bool has_weight;
  double eps;

  BatchNormBackward(const Tensor& variance, const optional<Tensor>& weight, double eps)
      : has_weight(weight.has_value()), eps(eps) {
    save(variance);
    if (has_weight) save(*weight);
  }

  Tensor input_gradient(Tensor grad) override {
    const Tensor variance = unpack(0);  // once, because a checkpoint lets a saved tensor be unpacked only once
    const auto weight = has_weight ? optional<Tensor>(unpack(1)) : std::nullopt;
    const Constants constants{weight, std::nullopt, std::nullopt, variance, eps};
    if (has_cuda_kernel(grad, constants)) {
      const Tensor to = is_ours(grad) ? grad : at::empty_like(grad);
      on_cuda<batch_norm_grad_cuda>("lean_batch_norm", batch_norm_args(grad, to, constants), grad.device());
      return to;
    }
    at::DimVector per_channel(grad.dim(), 1);
    per_channel[1] = -1;
    // Not in half precision, which would round the constants of a channel for all of its elements alike.
    const auto precise = at::toOpMathType(grad.scalar_type());
    Tensor scale = at::rsqrt(variance.to(precise) + eps);
    if (has_weight) scale.mul_(*weight);
    scale = scale.view(per_channel);
    return is_ours(grad) ? grad.mul_(scale) : grad.mul(scale).to(grad.scalar_type());
  }
};

Tensor batch_norm(const Tensor& input, const optional<Tensor>& weight, const optional<Tensor>& bias, const Tensor& mean,
                  const Tensor& variance, double eps) {
  return run(
      input,
      [&] {
        const Constants constants{weight, bias, mean, variance, eps};
        if (has_cuda_kernel(input, constants)) {
          Tensor output = at::empty_like(input);
          on_cuda<batch_norm_cuda>("lean_batch_norm", batch_norm_args(input, output, constants), input.device());
          return output;
        }
        return at::batch_norm(input, weight, bias, mean, variance, /*training=*/false, /*momentum=*/0.0, eps,
                              at::globalContext().userEnabledCuDNN());
      },
      [&] { return make_node<BatchNormBackward>(variance, weight, eps); }, weight, bias);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(igfast, m) {
  m.def(
      "lean_batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor mean, Tensor variance, float eps) -> Tensor");
}

TORCH_LIBRARY_IMPL(igfast, CompositeImplicitAutograd, m) { m.impl("lean_batch_norm", &batch_norm); }

void define_batch_norm(pybind11::module& m) { expose(m, "lean_batch_norm", &batch_norm); }

}  // namespace igfast::lean
