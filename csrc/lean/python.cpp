// Tells before each call whether the call can be lean. In Python, that takes 2 to 4 microseconds.
#include "python.h"

#include <ATen/autocast_mode.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/python_variable.h>

namespace igfast::lean {
namespace {

using at::Tensor;

// The order is that of igfast/lean/handlers.py.
enum Refusal { kNone, kNothingToSave, kType, kDevice, kAutocast, kWeightType, kWeightIsComputed, kTransform };

// Whether torch.func wraps the tensor, or it has a tangent. Neither has rules for the operators here.
bool is_transformed(const Tensor& tensor) {
  using c10::DispatchKey;
  if (torch::autograd::isFwGradDefined(tensor)) return true;
  return tensor.key_set().has_any(
      c10::DispatchKeySet({DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper}));
}

// Whether only __torch_dispatch__ of a Python class can compute with the tensor, which may have no memory of its own.
bool is_wrapper(const Tensor& tensor) { return tensor.key_set().has(c10::DispatchKey::Python); }

bool is_strided(const Tensor& tensor) { return tensor.layout() == at::kStrided; }

int refusal(const Tensor& x, const pybind11::args& weights) {
  if (is_transformed(x)) return kTransform;
  if (!x.requires_grad() || !at::GradMode::is_enabled()) return kNothingToSave;
  const auto dtype = x.scalar_type();
  const bool is_floating = dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16;
  if (!is_floating || !is_strided(x) || x.is_neg() || is_wrapper(x)) return kType;
  if (!x.is_cpu() && !x.is_cuda()) return kDevice;
  if (at::autocast::is_autocast_enabled(x.device().type())) return kAutocast;
  for (const auto& item : weights) {
    if (item.is_none()) continue;
    if (!THPVariable_Check(item.ptr())) return kWeightType;
    const Tensor& weight = THPVariable_Unpack(item.ptr());
    if (is_transformed(weight)) return kTransform;
    if (weight.scalar_type() != dtype || !is_strided(weight) || is_wrapper(weight)) return kWeightType;
    if (weight.requires_grad() && weight.grad_fn() != nullptr) return kWeightIsComputed;
  }
  return kNone;
}

}  // namespace

void define_all(pybind11::module& m) {
  m.def("lean_refusal", torch::wrap_pybind_function(&refusal));
  define_activations(m);
  define_batch_norm(m);
  define_convolution(m);
  define_linear(m);
  define_pooling(m);
}

}  // namespace igfast::lean
