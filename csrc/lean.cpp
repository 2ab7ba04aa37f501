// Lean execution: operators with the values of PyTorch's own, whose autograd nodes keep only what the gradient with
// respect to the *input* needs. Weights are constants to them. What they cannot do, the gradient of a weight or a
// second derivative, they refuse with an error; igfast/lean then runs the model plainly.
//
// Here: linear maps and gates (piecewise linear activations); lean_convolution.cpp has convolutions,
// lean_batch_norm.cpp batch normalisation, lean_pool.cpp pooling and padding. The nodes are written out rather than
// derived from torch::autograd::Function, which keeps its state in a dictionary.
#include "lean.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "cuda_glue.h"
#include "kernels.h"
#include "tensors.h"

namespace igfast::lean {
namespace {

using std::optional;

// ---------------------------------------------------------------------------------------------- linear maps

// The rows of a matrix that hold anything but zeros, if those are few, else nothing. A dense matrix is known by the
// first elements of its first rows.
optional<Tensor> few_rows(const Tensor& matrix) {
  constexpr int64_t kFew = 4;  // times as many rows must there be
  const int64_t n_rows = matrix.size(0), n_columns = matrix.size(1);
  std::vector<int64_t> found;
  bool are_few = true;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, matrix.scalar_type(), "few_rows", [&] {
    const auto* data = matrix.const_data_ptr<scalar_t>();
    for (int64_t r = 0; are_few && r < n_rows; ++r) {
      const auto* row = data + r * n_columns;
      if (std::all_of(row, row + n_columns, [](scalar_t value) { return value == scalar_t(0); })) continue;
      found.push_back(r);
      are_few = kFew * static_cast<int64_t>(found.size()) <= n_rows;
    }
  });
  if (!are_few) return std::nullopt;
  return at::tensor(found, matrix.options().dtype(at::kLong));
}

// Elements below which a matrix product is too short for a look at its rows.
constexpr int64_t kWorthALook = 1 << 16;

// grad @ weight. A classifier that reads one token leaves the gradient of the others zero up to the last attention: the
// last of 12 layers of a vision transformer gets through with a sixth of its products.
Tensor matmul_rows(const Tensor& grad, const Tensor& weight) {
  if (!grad.is_cpu() || !grad.is_contiguous() || grad.dim() < 2 || grad.numel() < kWorthALook) {
    return at::matmul(grad, weight);
  }
  const Tensor matrix = grad.view({-1, grad.size(-1)});
  const optional<Tensor> rows = few_rows(matrix);
  if (!rows.has_value()) return at::matmul(grad, weight);
  at::DimVector sizes(grad.sizes());
  sizes.back() = weight.size(1);
  Tensor result = at::zeros(sizes, grad.options());
  result.view({-1, weight.size(1)}).index_copy_(0, *rows, at::matmul(matrix.index_select(0, *rows), weight));
  return result;
}

// grad @ weight, for y = x @ weight^T
struct MatmulBackward final : Node {
  bool transposed_weight;

  MatmulBackward(const Tensor& weight, bool transposed_weight) : transposed_weight(transposed_weight) { save(weight); }

  Tensor input_gradient(Tensor grad) override {
    const Tensor weight = unpack(0);
    return matmul_rows(grad, transposed_weight ? weight : weight.t());
  }
};

// at::linear, by the route that it takes when the weight needs a gradient: at::matmul asks the transposed weight for
// that before it chooses between one matrix product and one for each entry of the batch, which round differently.
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

// ---------------------------------------------------------------------------------------------- gates

int64_t n_blocks(const Tensor& tensor) { return (tensor.numel() + kGateBlock - 1) / kGateBlock; }

Activation activation_of(std::string_view name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "hardtanh") return Activation::kHardtanh;
  if (name == "leaky_relu") return Activation::kLeakyRelu;
  TORCH_CHECK_VALUE(name == "threshold",
                    "igfast::lean_gate: activation must be relu, hardtanh, leaky_relu or threshold, got ", name);
  return Activation::kThreshold;
}

struct GateBackward final : Node {
  GateArgs args;
  Shape shape;

  GateBackward(const GateArgs& args, const Tensor& input, const Tensor& bits) : args(args), shape(input) { save(bits); }

  Tensor input_gradient(Tensor grad) override {
    Tensor bits = unpack(0);
    Tensor to;
    // Bits are in the memory order of the input; a gradient in another (one that was expanded, say) is copied into it.
    if (grad.strides() != IntArrayRef(shape.strides) || !grad.is_non_overlapping_and_dense()) {
      to = at::empty_strided(shape.sizes, shape.strides, shape.options);
      to.copy_(grad);
      grad = to;
    } else {
      to = is_ours(grad) ? grad : at::empty_strided(shape.sizes, shape.strides, shape.options);
    }
    args.from = grad.const_data_ptr();
    args.to = to.mutable_data_ptr();
    args.bits = bits.mutable_data_ptr<uint8_t>();
    if (to.is_cuda()) {
      gate_grad_on_cuda("lean_gate", args, to.device());
    } else {
      for_items(n_blocks(grad), grad.numel(), [&](int64_t begin, int64_t end) { gate_grad_cpu(args, begin, end); });
    }
    return to;
  }
};

// Writes the activation of `x` to `y`, both dense and of the same strides, and returns the bits.
Tensor gate_forward(GateArgs& args, const Tensor& x, const Tensor& y) {
  args.n_elements = x.numel();
  Tensor bits = at::empty({n_blocks(x) * kGateBytes}, x.options().dtype(at::kByte));
  args.from = x.const_data_ptr();
  args.to = y.mutable_data_ptr();
  args.bits = bits.mutable_data_ptr<uint8_t>();
  if (x.is_cuda()) {
    gate_on_cuda("lean_gate", args, x.device());
  } else {
    for_items(n_blocks(x), x.numel(), [&](int64_t begin, int64_t end) { gate_cpu(args, begin, end); });
  }
  return bits;
}

GateArgs gate_args(const Tensor& x, std::string_view activation, double low, double high, double slope) {
  check_has_kernels("lean_gate", x);
  const auto dtype = dtype_of("lean_gate", "x", x);
  return {dtype, 0, nullptr, nullptr, nullptr, activation_of(activation), low, high, slope};
}

Tensor gate(const Tensor& x, std::string_view activation, double low, double high, double slope) {
  GateArgs args = gate_args(x, activation, low, high, slope);
  Tensor y, bits;
  return run(
      x,
      [&] {
        const bool dense = x.is_non_overlapping_and_dense();
        y = dense ? at::empty_strided(x.sizes(), x.strides(), x.options()) : x.clone();
        bits = gate_forward(args, dense ? x : y, y);
        return y;
      },
      [&] { return make_node<GateBackward>(args, y, bits); });
}

Tensor& gate_(Tensor& x, std::string_view activation, double low, double high, double slope) {
  GateArgs args = gate_args(x, activation, low, high, slope);
  Tensor y = x, bits;
  return run_in_place(
      x,
      [&] {
        const bool dense = x.is_non_overlapping_and_dense();
        if (!dense) y = x.clone();
        bits = gate_forward(args, y, y);
        if (!dense) x.copy_(y);
      },
      [&] { return make_node<GateBackward>(args, y, bits); });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(igfast, m) {
  m.def("lean_linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def("lean_matmul(Tensor input, Tensor weight) -> Tensor");
  m.def("lean_addmm(Tensor bias, Tensor input, Tensor weight) -> Tensor");
  m.def("lean_mul(Tensor input, Tensor weight) -> Tensor");
  m.def("lean_gate(Tensor x, str activation, float low, float high, float slope) -> Tensor");
  m.def("lean_gate_(Tensor(a!) x, str activation, float low, float high, float slope) -> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(igfast, CompositeImplicitAutograd, m) {
  m.impl("lean_linear", &linear);
  m.impl("lean_matmul", &matmul);
  m.impl("lean_addmm", &addmm);
  m.impl("lean_mul", &mul);
}

TORCH_LIBRARY_IMPL(igfast, CPU, m) {
  m.impl("lean_gate", &gate);
  m.impl("lean_gate_", &gate_);
}

#ifdef IGFAST_CUDA
TORCH_LIBRARY_IMPL(igfast, CUDA, m) {
  m.impl("lean_gate", &gate);
  m.impl("lean_gate_", &gate_);
}
#endif

TORCH_LIBRARY_IMPL(igfast, Autograd, m) {
  m.impl("lean_gate", &gate);
  m.impl("lean_gate_", &gate_);
}

}  // namespace igfast::lean
