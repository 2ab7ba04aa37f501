// Lean execution for Python, as functions of igfast._C: what every call is asked, and the operators. A call by way of
// torch.ops, which reads its arguments by the schema, takes 2 to 8 microseconds more; these go through the dispatcher
// all the same. The questions in Python would take 2 to 4 microseconds for each call.
#include "lean_python.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace igfast {
namespace {

using at::IntArrayRef;
using at::Tensor;
using std::optional;

// In the order of igfast/lean/_handlers.py.
enum Refusal { kNone, kNothingToSave, kType, kDevice, kAutocast, kWeightType, kWeightIsComputed, kTransform };

// Of torch.func: its wrappers have no rules for the operators here.
bool is_transformed(const Tensor& tensor) {
  using c10::DispatchKey;
  return tensor.key_set().has_any(
      c10::DispatchKeySet({DispatchKey::FuncTorchBatched, DispatchKey::FuncTorchGradWrapper}));
}

bool is_strided(const Tensor& tensor) { return tensor.layout() == at::kStrided; }

int refusal(const Tensor& x, const pybind11::args& weights) {
  if (is_transformed(x)) return kTransform;
  if (!x.requires_grad() || !at::GradMode::is_enabled()) return kNothingToSave;
  const auto dtype = x.scalar_type();
  const bool is_floating = dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16;
  if (!is_floating || !is_strided(x)) return kType;
  if (!x.is_cpu() && !x.is_cuda()) return kDevice;
  if (at::autocast::is_autocast_enabled(x.device().type())) return kAutocast;
  for (const auto& item : weights) {
    if (!THPVariable_Check(item.ptr())) return kWeightType;
    const Tensor& weight = THPVariable_Unpack(item.ptr());
    if (is_transformed(weight)) return kTransform;
    if (weight.scalar_type() != dtype || !is_strided(weight)) return kWeightType;
    if (weight.requires_grad() && weight.grad_fn() != nullptr) return kWeightIsComputed;
  }
  return kNone;
}

// What an argument is taken as: numbers of NumPy are refused where an IntArrayRef is asked for.
template <typename Arg>
using Taken = std::conditional_t<std::is_same_v<Arg, IntArrayRef>, std::vector<int64_t>, Arg>;

template <typename Signature>
struct Operator;

template <typename Result, typename... Args>
struct Operator<Result(Args...)> {
  static void define(pybind11::module& m, const char* name) {
    const auto schema = c10::Dispatcher::singleton().findSchemaOrThrow((std::string("igfast::") + name).c_str(), "");
    const auto typed = schema.typed<Result(Args...)>();
    m.def(name, torch::wrap_pybind_function_no_gil([typed](Taken<Args>... args) { return typed.call(args...); }));
  }
};

}  // namespace

void define_lean_functions(pybind11::module& m) {
  m.def("lean_refusal", torch::wrap_pybind_function(&refusal));
  using Constant = const optional<Tensor>&;
  Operator<Tensor(const Tensor&, const Tensor&, Constant)>::define(m, "lean_linear");
  Operator<Tensor(const Tensor&, const Tensor&)>::define(m, "lean_matmul");
  Operator<Tensor(const Tensor&, const Tensor&, const Tensor&)>::define(m, "lean_addmm");
  Operator<Tensor(const Tensor&, const Tensor&)>::define(m, "lean_mul");
  Operator<Tensor(const Tensor&, std::string_view, double, double, double)>::define(m, "lean_gate");
  Operator<Tensor&(Tensor&, std::string_view, double, double, double)>::define(m, "lean_gate_");
  Operator<Tensor(const Tensor&, const Tensor&, Constant, IntArrayRef, IntArrayRef, IntArrayRef, bool, IntArrayRef,
                  int64_t)>::define(m, "lean_convolution");
  Operator<Tensor(const Tensor&, Constant, Constant, const Tensor&, const Tensor&, double)>::define(m,
                                                                                                    "lean_batch_norm");
  Operator<Tensor(const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, bool)>::define(m, "lean_max_pool");
  Operator<Tensor(const Tensor&, IntArrayRef, IntArrayRef, IntArrayRef, bool, bool, optional<int64_t>)>::define(
      m, "lean_avg_pool");
  Operator<Tensor(const Tensor&, IntArrayRef)>::define(m, "lean_adaptive_avg_pool");
  Operator<Tensor(const Tensor&, IntArrayRef, double)>::define(m, "lean_constant_pad");
  Operator<Tensor(const Tensor&, IntArrayRef, std::string_view)>::define(m, "lean_pad");
}

}  // namespace igfast
