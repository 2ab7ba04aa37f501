// The operators of lean execution as functions of the Python module igfast._C.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <string>
#include <type_traits>
#include <vector>

namespace igfast::lean {

// The type of an argument from Python. pybind11 refuses NumPy's integers where an IntArrayRef is expected.
template <typename Arg>
using Taken = std::conditional_t<std::is_same_v<Arg, at::IntArrayRef>, std::vector<int64_t>, Arg>;

// Defines a module function that calls an operator through the dispatcher, with the signature of the operator's C++
// function. Calls through torch.ops take 2 to 8 microseconds more, to interpret the schema.
template <typename Result, typename... Args>
void expose(pybind11::module& m, const char* name, Result (*)(Args...)) {
  const auto schema = c10::Dispatcher::singleton().findSchemaOrThrow((std::string("igfast::") + name).c_str(), "");
  const auto typed = schema.typed<Result(Args...)>();
  m.def(name, torch::wrap_pybind_function_no_gil([typed](Taken<Args>... args) { return typed.call(args...); }));
}

void define_activations(pybind11::module& m);
void define_batch_norm(pybind11::module& m);
void define_convolution(pybind11::module& m);
void define_linear(pybind11::module& m);
void define_pooling(pybind11::module& m);

// Defines every family, and lean_refusal.
void define_all(pybind11::module& m);

}  // namespace igfast::lean
