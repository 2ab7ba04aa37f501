// Shared by the operators of lean execution: a node that saves only constants, and the shape of an unsaved input.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <mutex>
#include <vector>

namespace igfast::lean {

using at::IntArrayRef;
using at::Tensor;
using std::optional;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Returns a tensor that nothing may read or write. On the CPU, such a tensor of any size takes next to no memory.
Tensor unbacked_tensor(IntArrayRef sizes, IntArrayRef strides, const at::TensorOptions& options);

// The layout of a tensor that is not saved.
struct Shape {
  at::DimVector sizes, strides;
  at::TensorOptions options;

  explicit Shape(const Tensor& tensor) : sizes(at::DimVector(tensor.sizes())), options(tensor.options()) {
    if (tensor.is_non_overlapping_and_dense()) {
      strides = at::DimVector(tensor.strides());
    } else {
      strides = at::DimVector(at::detail::defaultStrides(sizes));
    }
  }

  // Returns a tensor of this shape, for functions that take an operation's input but read only the input's shape.
  Tensor placeholder() const { return unbacked_tensor(sizes, strides, options); }
};

// Whether a gradient may be overwritten because nothing else references the tensor. A residual connection passes one
// tensor to both branches.
inline bool is_ours(const Tensor& grad) {
  return grad.use_count() == 1 && grad.storage().use_count() == 1 && grad.is_non_overlapping_and_dense();
}

// An operation with one differentiable input, edge 0, and constants, the later edges.
struct Node : torch::autograd::Node {
  std::vector<SavedVariable> saved;
  std::mutex mutex;

  virtual Tensor input_gradient(Tensor grad) = 0;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex);
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(),
                                "igfast: lean execution has no second derivative (create_graph=True)");
    for (size_t edge = 1; edge < num_outputs(); ++edge) {
      TORCH_CHECK_NOT_IMPLEMENTED(!task_should_compute_output(edge),
                                  "igfast: lean execution keeps nothing for the gradient of a weight");
    }
    // The forward pass ran without autocast. The caller of the backward pass may have autocast on.
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    variable_list result(num_outputs());
    Tensor grad = std::move(grads[0]);
    if (grad.defined() && task_should_compute_output(0)) result[0] = input_gradient(std::move(grad));
    return result;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex);
    for (auto& variable : saved) variable.reset_data();
  }

  void save(const Tensor& tensor) { saved.emplace_back(tensor, /*is_output=*/false); }
  Tensor unpack(size_t index) const { return saved[index].unpack(); }
};

// torch 2.13 holds nodes by intrusive_ptr. Earlier releases hold nodes by shared_ptr, with torch's deleteNode, which
// does not recurse through the graph. torch 2.13 has no deleteNode, so the lambda is generic.
template <typename N, typename... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, torch::autograd::Node>) {
    return c10::make_intrusive<N>(std::forward<Args>(args)...);
  } else {
    return std::shared_ptr<N>(new N(std::forward<Args>(args)...), [](auto* node) { deleteNode(node); });
  }
}

// Runs `forward` below autograd and, if the input needs a gradient, attaches a node to the result. `constants` get
// edges, so that asking for their gradients reaches the node, which refuses.
template <typename Forward, typename MakeNode, typename... Constants>
Tensor run(const Tensor& input, const Forward& forward, const MakeNode& node_of, const Constants&... constants) {
  using torch::autograd::compute_requires_grad;
  TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(input),
                              "igfast: lean execution has no forward-mode derivative");
  Tensor result;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    result = forward();
  }
  if (compute_requires_grad(input)) {
    auto node = node_of();
    node->set_next_edges(torch::autograd::collect_next_edges(input, constants...));
    torch::autograd::set_history(result, node);
  }
  return result;
}

// Like `run`, for a `forward` that works in place on `x`.
template <typename Forward, typename MakeNode, typename... Constants>
Tensor& run_in_place(Tensor& x, const Forward& forward, const MakeNode& node_of, const Constants&... constants) {
  const bool records = torch::autograd::compute_requires_grad(x);
  torch::autograd::check_inplace(x, records);
  TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(x),
                              "igfast: lean execution has no forward-mode derivative");
  torch::autograd::edge_list edges;
  if (records) edges = torch::autograd::collect_next_edges(x, constants...);
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    forward();
  }
  torch::autograd::increment_version(x);
  if (records) {
    auto node = node_of();
    node->set_next_edges(std::move(edges));
    torch::autograd::rebase_history(x, node);
  }
  return x;
}

}  // namespace igfast::lean
