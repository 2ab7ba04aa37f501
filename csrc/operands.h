// The arguments of the operators on path points, checked and brought to one memory order.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "kernels.h"
#include "tensors.h"

namespace igfast {

using at::Tensor;

inline void check_features(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  TORCH_CHECK_VALUE(tensor.dim() == like.dim() && tensor.dim() >= 1 && tensor.sizes().slice(1) == like.sizes().slice(1),
                    "igfast::", op, ": ", name, " has shape ", tensor.sizes(), ", but its features must be those of ",
                    like.sizes());
}

inline void check_accumulator(const char* op, const Tensor& acc, const Tensor& of) {
  const auto wanted = of.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(acc.scalar_type() == wanted, "igfast::", op, ": acc must be ", wanted, " for ", of.scalar_type(),
                   ", got ", acc.scalar_type());
  TORCH_CHECK_VALUE(acc.is_contiguous(acc.suggest_memory_format()), "igfast::", op,
                    ": acc must be contiguous or channels-last, got strides ", acc.strides());
}

inline void check_device(const char* op, at::Device device, at::TensorList tensors) {
  for (const Tensor& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.device() == device && tensor.layout() == at::kStrided, "igfast::", op,
                      ": all tensors must be dense and on ", device, ", got ", tensor.device());
  }
}

// The per-row arrays: `example` int64 and `values` (alpha or weight) float64, both of length n_rows. On the CPU the
// examples are looked at, too; a kernel on CUDA stops the device.
inline void check_rows(const char* op, const Tensor& example, const Tensor& values, int64_t n_rows,
                       int64_t n_examples) {
  TORCH_CHECK_TYPE(example.scalar_type() == at::kLong && values.scalar_type() == at::kDouble, "igfast::", op,
                   ": example must be int64 and alpha or weight float64, got ", example.scalar_type(), " and ",
                   values.scalar_type());
  TORCH_CHECK_VALUE(example.dim() == 1 && values.dim() == 1 && example.size(0) == n_rows && values.size(0) == n_rows,
                    "igfast::", op, ": example and alpha or weight must have shape (", n_rows, "), got ",
                    example.sizes(), " and ", values.sizes());
  TORCH_CHECK_VALUE(example.is_contiguous() && values.is_contiguous(), "igfast::", op,
                    ": example and alpha or weight must be contiguous");
  const auto* indices = example.is_cpu() ? example.const_data_ptr<int64_t>() : nullptr;
  for (int64_t r = 0; indices != nullptr && r < n_rows; ++r) {
    TORCH_CHECK_INDEX(indices[r] >= 0 && indices[r] < n_examples, "igfast::", op, ": example[", r, "] is ", indices[r],
                      ", must be in [0, ", n_examples, ")");
  }
}

// A baseline is one number (0 dimensions), one example (1, *features) or one for each (batch, *features).
inline void check_baseline(const char* op, const Tensor& baseline, const Tensor& x) {
  TORCH_CHECK_TYPE(baseline.scalar_type() == x.scalar_type(), "igfast::", op, ": baseline must be ", x.scalar_type(),
                   " as x is, got ", baseline.scalar_type());
  if (baseline.dim() == 0) return;
  check_features(op, "baseline", baseline, x);
  TORCH_CHECK_VALUE(baseline.size(0) == 1 || baseline.size(0) == x.size(0), "igfast::", op, ": baseline has ",
                    baseline.size(0), " examples, must have 1 or ", x.size(0));
}

// A baseline in a memory order: itself, or a copy.
inline Tensor ordered(const Tensor& baseline, at::MemoryFormat order) {
  return baseline.dim() == 0 ? baseline : baseline.contiguous(order);
}

inline Baseline baseline_of(const Tensor& ordered, int64_t n_features) {
  const bool is_shared = ordered.dim() == 0 || ordered.size(0) == 1;
  return {ordered.const_data_ptr(), is_shared ? 0 : n_features, ordered.dim() == 0};
}

inline int64_t n_features_of(const Tensor& rows) { return rows.numel() / rows.size(0); }

// Calls `kernel(args)` where there are elements. Returns the points, in the memory order of x.
template <typename Kernel>
Tensor interpolate_with(const Kernel& kernel, const Tensor& given_x, const Tensor& given_baseline,
                        const Tensor& example, const Tensor& alpha) {
  constexpr auto op = "interpolate";
  TORCH_CHECK_VALUE(given_x.dim() >= 1, "igfast::interpolate: x must have a batch dimension, got 0 dimensions");
  check_device(op, given_x.device(), {given_x, given_baseline, example, alpha});
  check_baseline(op, given_baseline, given_x);
  check_rows(op, example, alpha, example.numel(), given_x.size(0));
  const auto order = given_x.suggest_memory_format();
  const Tensor x = given_x.contiguous(order), baseline = ordered(given_baseline, order);
  at::DimVector sizes(x.sizes());
  sizes[0] = example.numel();
  Tensor out = at::empty(sizes, x.options().memory_format(order));
  const auto dtype = dtype_of(op, "x", x);
  if (out.numel() == 0) return out;
  const int64_t n_features = n_features_of(x);
  kernel(InterpolateArgs{dtype, out.size(0), x.size(0), n_features, x.const_data_ptr(),
                         baseline_of(baseline, n_features), example.const_data_ptr<int64_t>(),
                         alpha.const_data_ptr<double>(), out.mutable_data_ptr()});
  return out;
}

template <typename Kernel>
void accumulate_with(const Kernel& kernel, const Tensor& acc, const Tensor& given_grads, const Tensor& example,
                     const Tensor& weight, const std::optional<Tensor>& finite) {
  constexpr auto op = "accumulate_";
  check_device(op, given_grads.device(), {acc, given_grads, example, weight});
  const auto dtype = dtype_of(op, "grads", given_grads);
  check_accumulator(op, acc, given_grads);
  check_features(op, "grads", given_grads, acc);
  check_rows(op, example, weight, given_grads.size(0), acc.size(0));
  if (finite.has_value()) {
    check_device(op, given_grads.device(), {*finite});
    TORCH_CHECK_VALUE(finite->scalar_type() == at::kByte && finite->dim() == 1 &&
                          finite->size(0) == given_grads.size(0) && finite->is_contiguous(),
                      "igfast::accumulate_: finite must be contiguous uint8 of shape (", given_grads.size(0), "), got ",
                      finite->scalar_type(), " ", finite->sizes());
  }
  if (given_grads.numel() == 0) return;
  const Tensor grads = given_grads.contiguous(acc.suggest_memory_format());
  kernel(AccumulateArgs{dtype, grads.size(0), acc.size(0), n_features_of(grads), acc.mutable_data_ptr(),
                        grads.const_data_ptr(), example.const_data_ptr<int64_t>(), weight.const_data_ptr<double>(),
                        finite.has_value() ? finite->mutable_data_ptr<uint8_t>() : nullptr, 1, nullptr});
}

template <typename Kernel>
void scale_with(const Kernel& kernel, const Tensor& acc, const Tensor& given_x, const Tensor& given_baseline) {
  constexpr auto op = "scale_";
  check_device(op, given_x.device(), {acc, given_x, given_baseline});
  const auto dtype = dtype_of(op, "x", given_x);
  check_accumulator(op, acc, given_x);
  TORCH_CHECK_VALUE(acc.sizes() == given_x.sizes() && acc.dim() >= 1, "igfast::scale_: acc has shape ", acc.sizes(),
                    ", must be that of x, ", given_x.sizes());
  check_baseline(op, given_baseline, given_x);
  if (acc.numel() == 0) return;
  const auto order = acc.suggest_memory_format();
  const Tensor x = given_x.contiguous(order), baseline = ordered(given_baseline, order);
  const int64_t n_features = n_features_of(x);
  kernel(ScaleArgs{dtype, x.size(0), n_features, acc.mutable_data_ptr(), x.const_data_ptr(),
                   baseline_of(baseline, n_features)});
}

}  // namespace igfast
