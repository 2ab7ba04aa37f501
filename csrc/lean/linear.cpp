// Lean execution of linear maps and of products with a weight: the gradient saves only the weight.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "node.h"
#include "python.h"

namespace igfast::lean {
namespace {

// Returns grad @ weight, without the rows of a CPU gradient that are zero, if those are most. A classifier that reads
// one token leaves the gradients of the other tokens zero up to the last attention: without this a BERT-base took 1.1
// times as long. The first column tells a dense gradient, without a look at all of it.
Tensor matmul_rows(const Tensor& grad, const Tensor& weight) {
  constexpr int64_t kWorthALook = 1 << 16, kFew = 4;  // elements; times as many rows must there be
  if (!grad.is_cpu() || !grad.is_contiguous() || grad.dim() < 2 || grad.numel() < kWorthALook) {
    return at::matmul(grad, weight);
  }
  const Tensor matrix = grad.view({-1, grad.size(-1)});
  if (kFew * at::count_nonzero(matrix.select(1, 0)).item<int64_t>() > matrix.size(0)) return at::matmul(grad, weight);
  const Tensor rows = at::nonzero(matrix.any(1)).squeeze(1);
  if (kFew * rows.numel() > matrix.size(0)) return at::matmul(grad, weight);
  at::DimVector sizes(grad.sizes());
  sizes.back() = weight.size(1);
  Tensor result = at::zeros(sizes, grad.options());
  result.view({-1, weight.size(1)}).index_copy_(0, rows, at::matmul(matrix.index_select(0, rows), weight));
  return result;
}

// The gradient of y = x @ weight^T is grad @ weight.
struct MatmulBackward final : Node {
  bool transposed_weight;

  MatmulBackward(const Tensor& weight, bool transposed_weight) : transposed_weight(transposed_weight) { save(weight); }

  Tensor input_gradient(Tensor grad) override {
    const Tensor weight = unpack(0);
    return matmul_rows(grad, transposed_weight ? weight : weight.t());
  }
};

// Computes like at::linear with a weight that requires a gradient. at::matmul chooses by `requires_grad` between one
// matrix product and one per batch entry, which round differently.
Tensor linear_forward(const Tensor& input, const Tensor& weight, const optional<Tensor>& bias) {
  if (input.dim() < 3 || input.is_contiguous()) return at::linear(input, weight, bias);
  Tensor transposed = weight.t();
  transposed.set_requires_grad(weight.requires_grad());
  Tensor output = at::matmul(input, transposed);
  return bias.has_value() ? output.add_(*bias) : output;
}

Tensor linear(const Tensor& input, const Tensor& weight, const optional<Tensor>& bias) {
  return run(
      input, [&] { return linear_forward(input, weight, bias); },
      [&] { return make_node<MatmulBackward>(weight, true); }, weight, bias);
}

Tensor matmul(const Tensor& input, const Tensor& weight) {
  return run(
      input, [&] { return at::matmul(input, weight); }, [&] { return make_node<MatmulBackward>(weight, false); },
      weight);
}

Tensor addmm(const Tensor& bias, const Tensor& input, const Tensor& weight) {
  return run(
      input, [&] { return at::addmm(bias, input, weight); }, [&] { return make_node<MatmulBackward>(weight, false); },
      weight, bias);
}

struct MulBackward final : Node {
  at::DimVector sizes;

  MulBackward(const Tensor& input, const Tensor& weight) : sizes(at::DimVector(input.sizes())) { save(weight); }

  Tensor input_gradient(Tensor grad) override {
    const Tensor weight = unpack(0);
    if (is_ours(grad) && grad.sizes() == IntArrayRef(sizes)) return grad.mul_(weight);
    return at::sum_to(grad.mul(weight), sizes);
  }
};

Tensor mul(const Tensor& input, const Tensor& weight) {
  return run(
      input, [&] { return at::mul(input, weight); }, [&] { return make_node<MulBackward>(input, weight); }, weight);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(igfast, m) {
  m.def("lean_linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def("lean_matmul(Tensor input, Tensor weight) -> Tensor");
  m.def("lean_addmm(Tensor bias, Tensor input, Tensor weight) -> Tensor");
  m.def("lean_mul(Tensor input, Tensor weight) -> Tensor");
}

TORCH_LIBRARY_IMPL(igfast, CompositeImplicitAutograd, m) {
  m.impl("lean_linear", &linear);
  m.impl("lean_matmul", &matmul);
  m.impl("lean_addmm", &addmm);
  m.impl("lean_mul", &mul);
}

void define_linear(pybind11::module& m) {
  expose(m, "lean_linear", &linear);
  expose(m, "lean_matmul", &matmul);
  expose(m, "lean_addmm", &addmm);
  expose(m, "lean_mul", &mul);
}

}  // namespace igfast::lean
