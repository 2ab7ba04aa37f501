// What the operators of lean execution share: a node that keeps constants alone, and the shape of an input that is
// gone.
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

// A tensor that is neither read nor written, any size of which takes next to no memory (on the CPU).
Tensor unbacked_tensor(IntArrayRef sizes, IntArrayRef strides, const at::TensorOptions& options);

// Sizes and strides of a tensor that is gone.
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

  // A tensor of this shape for functions that ask for the input of an operation but read only its shape.
  Tensor placeholder() const { return unbacked_tensor(sizes, strides, options); }
};

// A gradient that nobody else holds may be overwritten. A residual connection hands one tensor to both branches.
inline bool is_ours(const Tensor& grad) {
  return grad.use_count() == 1 && grad.storage().use_count() == 1 && grad.is_non_overlapping_and_dense();
}

// An operation with one differentiable input, edge 0, and constants, the edges after it.
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
    // The forward pass chose the dtypes, maybe with autocast off where the caller has it on.
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

  // Whether another node ever had this one as its next, which forbids edges that come later.
  bool had_parent() const { return has_parent_; }

  void save(const Tensor& tensor) { saved.emplace_back(tensor, /*is_output=*/false); }
  Tensor unpack(size_t index) const { return saved[index].unpack(); }
};

// A node whose gradient may begin with that of a batch norm in eval mode: a batch norm's own, or a convolution's, which
// can take in a batch norm that overwrites its result.
struct NormNode : Node {
  // Whether it can take in a batch norm of these constants, which then overwrites its result.
  virtual bool takes_in(const Tensor& /*variance*/, const optional<Tensor>& /*weight*/) const { return false; }

  // Saves the constants of a batch norm, from here on part of this node.
  void save_norm(const Tensor& variance, const optional<Tensor>& weight, double eps);

 protected:
  bool has_norm() const { return has_norm_; }

  // What the batch norm multiplies its channels by, which are dimension `dim` of `n_dims`.
  Tensor scale(int64_t dim, int64_t n_dims) const;

  // A gradient times that; overwrites what is ours.
  Tensor scaled(Tensor grad) const;

 private:
  bool has_norm_ = false, has_weight_ = false;
  size_t first_ = 0;  // of what was saved
  double eps_ = 0;
};

// torch 2.13 holds nodes by intrusive_ptr; earlier releases by shared_ptr, with a deleter of torch's that does not
// recurse through the graph (found by its argument, since torch 2.13 has none).
template <typename N, typename... Args>
auto make_node(Args&&... args) {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, torch::autograd::Node>) {
    return c10::make_intrusive<N>(std::forward<Args>(args)...);
  } else {
    return std::shared_ptr<N>(new N(std::forward<Args>(args)...), [](auto* node) { deleteNode(node); });
  }
}

// Runs the forward function below autograd and, if the input needs a gradient, hangs a node on its result. `constants`
// get edges, so that asking for their gradients reaches the node and is refused.
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

// Runs a forward function that overwrites x below autograd; returns whether there is a gradient to be recorded.
template <typename Forward>
bool overwrite_below_autograd(Tensor& x, const Forward& forward) {
  const bool records = torch::autograd::compute_requires_grad(x);
  torch::autograd::check_inplace(x, records);
  TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(x),
                              "igfast: lean execution has no forward-mode derivative");
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    forward();
  }
  torch::autograd::increment_version(x);
  return records;
}

// As `run`, for a forward function that overwrites the input.
template <typename Forward, typename MakeNode, typename... Constants>
Tensor& run_in_place(Tensor& x, const Forward& forward, const MakeNode& node_of, const Constants&... constants) {
  torch::autograd::edge_list edges;
  if (torch::autograd::compute_requires_grad(x)) edges = torch::autograd::collect_next_edges(x, constants...);
  if (overwrite_below_autograd(x, forward)) {
    auto node = node_of();
    node->set_next_edges(std::move(edges));
    torch::autograd::rebase_history(x, node);
  }
  return x;
}

// The node of x, if it is of this kind and no tensor, node or hook but x has to do with it, or ever had: it may take in
// what x is overwritten with.
template <typename N>
N* own_node(const Tensor& x) {
  const auto& function = x.grad_fn();
  auto* node = dynamic_cast<N*>(function.get());
  if (node == nullptr || node->had_parent() || function.use_count() != 1 || x.is_view()) return nullptr;
  const bool has_hooks = !node->tensor_pre_hooks().empty() || !node->retains_grad_hooks().empty() ||
                         !node->pre_hooks().empty() || !node->post_hooks().empty();
  return has_hooks ? nullptr : node;
}

}  // namespace igfast::lean
