// Lean execution of piecewise linear activations (gates): the gradient saves one bit per element.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "../kernels.h"
#include "../on_cuda.h"
#include "../tensors.h"
#include "node.h"
#include "python.h"

namespace igfast::lean {
namespace {

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
  c10::VariableVersion version;  // of the result, where PyTorch's gradient reads the result
  uint32_t version_then = 0;

  // `kept` is the result if PyTorch would save it, as for ReLUs and leaky ReLUs in place, and null if it saves another
  // tensor. PyTorch's gradient refuses to read a tensor that was written to since.
  GateBackward(const GateArgs& args, const Tensor& result, const Tensor& bits, const Tensor* kept)
      : args(args), shape(result) {
    save(bits);
    if (kept == nullptr) return;
    version = torch::autograd::impl::version_counter(*kept);
    version_then = version.current_version();
  }

  Tensor input_gradient(Tensor grad) override {
    TORCH_CHECK(!version.enabled() || version.current_version() == version_then,
                "igfast: the result of an activation was written to before its gradient was taken");
    Tensor bits = unpack(0);
    Tensor to;
    // The bits are in the memory order of the result, which is the input's. A gradient in another order, such as an
    // expanded one, is copied first.
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
    if (to.is_cuda() && to.numel() > 0) {
      on_cuda<gate_grad_cuda>("lean_gate", args, to.device());
    } else {
      for_items(n_blocks(grad), grad.numel(), [&](int64_t begin, int64_t end) { gate_grad_cpu(args, begin, end); });
    }
    return to;
  }
};

// Writes the activation of `x` to `y` and returns the bits. Both tensors are dense and have the same strides.
Tensor gate_forward(GateArgs& args, const Tensor& x, const Tensor& y) {
  args.n_elements = x.numel();
  Tensor bits = at::empty({n_blocks(x) * kGateBytes}, x.options().dtype(at::kByte));
  args.from = x.const_data_ptr();
  args.to = y.mutable_data_ptr();
  args.bits = bits.mutable_data_ptr<uint8_t>();
  if (x.is_cuda() && x.numel() > 0) {
    on_cuda<gate_cuda>("lean_gate", args, x.device());
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
      [&] { return make_node<GateBackward>(args, y, bits, args.activation == Activation::kRelu ? &y : nullptr); });
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
      [&] {
        const bool keeps = args.activation == Activation::kRelu || args.activation == Activation::kLeakyRelu;
        return make_node<GateBackward>(args, y, bits, keeps ? &x : nullptr);
      });
}

void implement(torch::Library& m) {
  m.impl("lean_gate", &gate);
  m.impl("lean_gate_", &gate_);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(igfast, m) {
  m.def("lean_gate(Tensor x, str activation, float low, float high, float slope) -> Tensor");
  m.def("lean_gate_(Tensor(a!) x, str activation, float low, float high, float slope) -> Tensor(a!)");
}

TORCH_LIBRARY_IMPL(igfast, CPU, m) { implement(m); }
#ifdef IGFAST_CUDA
TORCH_LIBRARY_IMPL(igfast, CUDA, m) { implement(m); }
#endif
TORCH_LIBRARY_IMPL(igfast, Autograd, m) { implement(m); }

void define_activations(pybind11::module& m) {
  expose(m, "lean_gate", &gate);
  expose(m, "lean_gate_", &gate_);
}

}  // namespace igfast::lean
