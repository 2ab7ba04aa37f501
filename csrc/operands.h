// Tensors of (batch, *features) as the operands of kernels: checked, and their dimensions merged into few.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "kernels.h"
#include "tensors.h"

namespace igfast {

using at::Tensor;

// ---------------------------------------------------------------------------------------------- argument checks

inline void check_features(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  TORCH_CHECK_VALUE(tensor.dim() == like.dim() && tensor.dim() >= 1 && tensor.sizes().slice(1) == like.sizes().slice(1),
                    "igfast::", op, ": ", name, " has shape ", tensor.sizes(), ", but its features must be those of ",
                    like.sizes());
}

inline void check_accumulator(const char* op, const Tensor& acc, const Tensor& of) {
  const auto wanted = of.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(acc.scalar_type() == wanted, "igfast::", op, ": acc must be ", wanted, " for ", of.scalar_type(),
                   ", got ", acc.scalar_type());
  TORCH_CHECK_VALUE(acc.is_non_overlapping_and_dense(), "igfast::", op,
                    ": acc must not overlap itself and must be dense, got strides ", acc.strides());
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

inline void check_device(const char* op, at::Device device, at::TensorList tensors) {
  for (const Tensor& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.device() == device && tensor.layout() == at::kStrided, "igfast::", op,
                      ": all tensors must be dense and on ", device, ", got ", tensor.device());
  }
}

// The per-row arrays: `example` int64 and `values` (alpha or weight) float64, both of length n_rows.
inline void check_rows(const char* op, const Tensor& example, const Tensor& values, int64_t n_rows) {
  TORCH_CHECK_TYPE(example.scalar_type() == at::kLong && values.scalar_type() == at::kDouble, "igfast::", op,
                   ": example must be int64 and alpha or weight float64, got ", example.scalar_type(), " and ",
                   values.scalar_type());
  TORCH_CHECK_VALUE(example.dim() == 1 && values.dim() == 1 && example.size(0) == n_rows && values.size(0) == n_rows,
                    "igfast::", op, ": example and alpha or weight must have shape (", n_rows, "), got ",
                    example.sizes(), " and ", values.sizes());
  TORCH_CHECK_VALUE(example.is_contiguous() && values.is_contiguous(), "igfast::", op,
                    ": example and alpha or weight must be contiguous");
}

// ---------------------------------------------------------------------------------------------- layout

// One (batch, *features) tensor before its dimensions are merged.
struct Layout {
  void* data;
  int64_t batch_stride;
  std::vector<int64_t> strides;
};

inline Layout layout_of(const Tensor& tensor, int64_t batch, size_t n_features, bool written = false) {
  void* data = written ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
  Layout layout{data, 0, std::vector<int64_t>(n_features, 0)};
  if (tensor.dim() == 0) return layout;  // one number: every stride is 0
  layout.batch_stride = tensor.size(0) == 1 && batch != 1 ? 0 : tensor.stride(0);
  std::copy(tensor.strides().begin() + 1, tensor.strides().end(), layout.strides.begin());
  return layout;
}

// Dimensions in the order of the first layout's memory (the operand that each row touches), neighbours merged wherever
// all layouts allow it. On the CPU, a short innermost dimension (the channels of a channels-last image) trades places
// with the one outside it, so that the vector loop is long and the short one runs inside a tile; the threads of a GPU
// go along memory.
inline Features merge_dimensions(const char* op, at::IntArrayRef sizes, std::vector<Layout>& layouts, bool on_cpu) {
  const int64_t kShort = on_cpu ? 16 : 0;
  std::vector<size_t> order;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1) order.push_back(d);
  }
  const auto& key = layouts.front().strides;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key[a] > key[b]; });

  std::vector<int64_t> merged_sizes;
  std::vector<std::vector<int64_t>> merged(layouts.size());
  for (const size_t d : order) {
    const bool merges = !merged_sizes.empty() && [&] {
      for (size_t k = 0; k < layouts.size(); ++k) {
        if (merged[k].back() != layouts[k].strides[d] * sizes[d]) return false;
      }
      return true;
    }();
    if (!merges) merged_sizes.push_back(1);
    merged_sizes.back() *= sizes[d];
    for (size_t k = 0; k < layouts.size(); ++k) {
      if (merges) {
        merged[k].back() = layouts[k].strides[d];
      } else {
        merged[k].push_back(layouts[k].strides[d]);
      }
    }
  }
  const size_t n = merged_sizes.size();
  if (n >= 2 && merged_sizes[n - 1] < kShort) {
    std::swap(merged_sizes[n - 1], merged_sizes[n - 2]);
    for (auto& strides : merged) std::swap(strides[n - 1], strides[n - 2]);
  } else {  // no short loop: put one of size 1 there
    const size_t where = n == 0 ? 0 : n - 1;
    merged_sizes.insert(merged_sizes.begin() + where, 1);
    for (auto& strides : merged) strides.insert(strides.begin() + where, 0);
  }
  while (merged_sizes.size() < 2) {
    merged_sizes.push_back(1);
    for (auto& strides : merged) strides.push_back(0);
  }
  TORCH_CHECK_NOT_IMPLEMENTED(merged_sizes.size() <= igfast::kMaxDims, "igfast::", op, ": the layouts leave ",
                              merged_sizes.size(), " dimensions that cannot be merged, at most ", igfast::kMaxDims,
                              " are supported; pass contiguous tensors");
  Features features{};
  features.n_dims = static_cast<int32_t>(merged_sizes.size());
  std::copy(merged_sizes.begin(), merged_sizes.end(), features.sizes);
  features.n_outer = std::accumulate(merged_sizes.begin(), merged_sizes.end() - 2, int64_t{1}, std::multiplies<>());
  features.n_tiles = (merged_sizes.back() + igfast::kTile - 1) / igfast::kTile;
  for (size_t k = 0; k < layouts.size(); ++k) layouts[k].strides = merged[k];
  return features;
}

inline Operand operand_of(const Layout& layout) {
  Operand operand{layout.data, layout.batch_stride, {}};
  std::copy(layout.strides.begin(), layout.strides.end(), operand.strides);
  return operand;
}

// ---------------------------------------------------------------------------------------------- operators

// Fills in the arguments of a kernel but for the rows; false if there is nothing to do.
template <typename Rows>
bool lay_out(InterpolateArgsOf<Rows>& args, const Tensor& x, const Tensor& baseline, const Tensor& example,
             const Tensor& alpha, const Tensor& out) {
  constexpr auto op = "interpolate";
  check_device(op, x.device(), {x, baseline, example, alpha, out});
  args.dtype = dtype_of(op, "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 1, "igfast::interpolate: x must have a batch dimension, got 0 dimensions");
  check_baseline(op, baseline, x);
  check_features(op, "out", out, x);
  check_rows(op, example, alpha, out.size(0));
  TORCH_CHECK_TYPE(out.scalar_type() == x.scalar_type(), "igfast::interpolate: out must be ", x.scalar_type(),
                   " as x is, got ", out.scalar_type());
  TORCH_CHECK_VALUE(out.is_non_overlapping_and_dense(),
                    "igfast::interpolate: out must not overlap itself and must be dense, got strides ", out.strides());
  if (out.numel() == 0) return false;
  const size_t n_features = x.dim() - 1;
  std::vector<Layout> layouts{layout_of(out, out.size(0), n_features, true), layout_of(x, x.size(0), n_features),
                              layout_of(baseline, x.size(0), n_features)};
  args.features = merge_dimensions(op, x.sizes().slice(1), layouts, x.is_cpu());
  args.out = operand_of(layouts[0]);
  args.x = operand_of(layouts[1]);
  args.baseline = operand_of(layouts[2]);
  args.alpha = alpha.const_data_ptr<double>();
  return true;
}

// Where to write so many rows of x.
inline Tensor empty_rows(const Tensor& x, int64_t n_rows, at::MemoryFormat memory_format) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "igfast::interpolate: x must have a batch dimension, got 0 dimensions");
  auto sizes = x.sizes().vec();
  sizes[0] = n_rows;
  return at::empty(sizes, x.options().memory_format(memory_format));
}

template <typename Rows>
bool lay_out(AccumulateArgsOf<Rows>& args, const Tensor& acc, const Tensor& grads, const Tensor& example,
             const Tensor& weight, const std::optional<Tensor>& finite) {
  constexpr auto op = "accumulate_";
  check_device(op, grads.device(), {acc, grads, example, weight});
  args.dtype = dtype_of(op, "grads", grads);
  check_accumulator(op, acc, grads);
  check_features(op, "grads", grads, acc);
  check_rows(op, example, weight, grads.size(0));
  if (finite.has_value()) {
    check_device(op, grads.device(), {*finite});
    TORCH_CHECK_VALUE(finite->scalar_type() == at::kByte && finite->dim() == 1 && finite->size(0) == grads.size(0) &&
                          finite->is_contiguous(),
                      "igfast::accumulate_: finite must be contiguous uint8 of shape (", grads.size(0), "), got ",
                      finite->scalar_type(), " ", finite->sizes());
  }
  if (grads.numel() == 0) return false;
  const size_t n_features = acc.dim() - 1;
  std::vector<Layout> layouts{layout_of(grads, grads.size(0), n_features),
                              layout_of(acc, acc.size(0), n_features, true)};
  args.features = merge_dimensions(op, acc.sizes().slice(1), layouts, acc.is_cpu());
  args.grads = operand_of(layouts[0]);
  args.acc = operand_of(layouts[1]);
  args.weight = weight.const_data_ptr<double>();
  args.finite = finite.has_value() ? finite->mutable_data_ptr<uint8_t>() : nullptr;
  args.links = nullptr;
  return true;
}

inline bool lay_out(ScaleArgs& args, const Tensor& acc, const Tensor& x, const Tensor& baseline) {
  constexpr auto op = "scale_";
  check_device(op, x.device(), {acc, x, baseline});
  args.dtype = dtype_of(op, "x", x);
  check_accumulator(op, acc, x);
  TORCH_CHECK_VALUE(acc.sizes() == x.sizes() && x.dim() >= 1, "igfast::scale_: acc has shape ", acc.sizes(),
                    ", must be that of x, ", x.sizes());
  check_baseline(op, baseline, x);
  if (acc.numel() == 0) return false;
  const size_t n_features = x.dim() - 1;
  const int64_t batch = x.size(0);
  std::vector<Layout> layouts{layout_of(acc, batch, n_features, true), layout_of(x, batch, n_features),
                              layout_of(baseline, batch, n_features)};
  args.features = merge_dimensions(op, x.sizes().slice(1), layouts, x.is_cpu());
  args.acc = operand_of(layouts[0]);
  args.x = operand_of(layouts[1]);
  args.baseline = operand_of(layouts[2]);
  return true;
}

}  // namespace igfast
