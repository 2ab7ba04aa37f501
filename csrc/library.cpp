// The operators of igfast: schemas, argument checks and the CPU launchers, and the pybind11 module igfast._C.
// The sources that include torch headers, which take half a minute each to compile, are this one and lean*.cpp; the
// kernels see kernels.h alone.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "host_pool.h"
#include "kernels.h"
#include "tensors.h"

namespace {

using at::Tensor;
using igfast::dtype_of;
using igfast::Features;
using igfast::kGrainElements;
using igfast::Operand;

// ---------------------------------------------------------------------------------------------- argument checks

void check_features(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  TORCH_CHECK_VALUE(tensor.dim() == like.dim() && tensor.dim() >= 1 && tensor.sizes().slice(1) == like.sizes().slice(1),
                    "igfast::", op, ": ", name, " has shape ", tensor.sizes(), ", but its features must be those of ",
                    like.sizes());
}

void check_accumulator(const char* op, const Tensor& acc, const Tensor& of) {
  const auto wanted = of.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_TYPE(acc.scalar_type() == wanted, "igfast::", op, ": acc must be ", wanted, " for ", of.scalar_type(),
                   ", got ", acc.scalar_type());
  TORCH_CHECK_VALUE(acc.is_non_overlapping_and_dense(), "igfast::", op,
                    ": acc must not overlap itself and must be dense, got strides ", acc.strides());
}

// A baseline is one number (0 dimensions), one example (1, *features) or one for each (batch, *features).
void check_baseline(const char* op, const Tensor& baseline, const Tensor& x) {
  TORCH_CHECK_TYPE(baseline.scalar_type() == x.scalar_type(), "igfast::", op, ": baseline must be ", x.scalar_type(),
                   " as x is, got ", baseline.scalar_type());
  if (baseline.dim() == 0) return;
  check_features(op, "baseline", baseline, x);
  TORCH_CHECK_VALUE(baseline.size(0) == 1 || baseline.size(0) == x.size(0), "igfast::", op, ": baseline has ",
                    baseline.size(0), " examples, must have 1 or ", x.size(0));
}

void check_cpu(const char* op, at::TensorList tensors) {
  for (const Tensor& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.device().is_cpu() && tensor.layout() == at::kStrided, "igfast::", op,
                      ": all tensors must be dense and on the CPU, got ", tensor.device());
  }
}

// The per-row arrays: `example` int64 in [0, batch) and `values` (alpha or weight) float64, both of length n_rows.
void check_rows(const char* op, const Tensor& example, const Tensor& values, int64_t n_rows, int64_t batch) {
  TORCH_CHECK_TYPE(example.scalar_type() == at::kLong && values.scalar_type() == at::kDouble, "igfast::", op,
                   ": example must be int64 and alpha or weight float64, got ", example.scalar_type(), " and ",
                   values.scalar_type());
  TORCH_CHECK_VALUE(example.dim() == 1 && values.dim() == 1 && example.size(0) == n_rows && values.size(0) == n_rows,
                    "igfast::", op, ": example and alpha or weight must have shape (", n_rows, "), got ",
                    example.sizes(), " and ", values.sizes());
  TORCH_CHECK_VALUE(example.is_contiguous() && values.is_contiguous(), "igfast::", op,
                    ": example and alpha or weight must be contiguous");
  const auto* indices = example.const_data_ptr<int64_t>();
  for (int64_t r = 0; r < n_rows; ++r) {
    TORCH_CHECK_INDEX(indices[r] >= 0 && indices[r] < batch, "igfast::", op, ": example[", r, "] is ", indices[r],
                      ", must be in [0, ", batch, ")");
  }
}

// ---------------------------------------------------------------------------------------------- layout

// One (batch, *features) tensor before its dimensions are merged.
struct Layout {
  void* data;
  int64_t batch_stride;
  std::vector<int64_t> strides;
};

Layout layout_of(const Tensor& tensor, int64_t batch, size_t n_features, bool written = false) {
  void* data = written ? tensor.mutable_data_ptr() : const_cast<void*>(tensor.const_data_ptr());
  Layout layout{data, 0, std::vector<int64_t>(n_features, 0)};
  if (tensor.dim() == 0) return layout;  // one number: every stride is 0
  layout.batch_stride = tensor.size(0) == 1 && batch != 1 ? 0 : tensor.stride(0);
  std::copy(tensor.strides().begin() + 1, tensor.strides().end(), layout.strides.begin());
  return layout;
}

// Dimensions in the order of the first layout's memory (the operand that each row touches), neighbours merged wherever
// all layouts allow it. A short innermost dimension (the channels of a channels-last image) trades places with the one
// outside it, so that the vector loop is long and the short one runs inside a tile.
Features merge_dimensions(const char* op, at::IntArrayRef sizes, std::vector<Layout>& layouts) {
  constexpr int64_t kShort = 16;
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

Operand operand_of(const Layout& layout) {
  Operand operand{layout.data, layout.batch_stride, {}};
  std::copy(layout.strides.begin(), layout.strides.end(), operand.strides);
  return operand;
}

// Rows sorted by example, keeping their order within one.
struct GroupedRows {
  std::vector<int64_t> example, begin, row;

  explicit GroupedRows(const Tensor& examples) : row(examples.numel()) {
    const auto* indices = examples.const_data_ptr<int64_t>();
    std::iota(row.begin(), row.end(), 0);
    std::stable_sort(row.begin(), row.end(), [&](int64_t a, int64_t b) { return indices[a] < indices[b]; });
    for (size_t i = 0; i < row.size(); ++i) {
      if (i == 0 || indices[row[i]] != example.back()) {
        example.push_back(indices[row[i]]);
        begin.push_back(static_cast<int64_t>(i));
      }
    }
    begin.push_back(static_cast<int64_t>(row.size()));
  }

  igfast::RowGroups view() const {
    return {static_cast<int64_t>(example.size()), example.data(), begin.data(), row.data()};
  }
};

// Runs `launch(begin, end)` over all work items. `touched` is the number of elements that the whole call updates.
template <typename Launch>
void parallel_over_items(int64_t n_items, int64_t touched, const Launch& launch) {
  const int64_t per_item = std::max<int64_t>(1, touched / n_items);
  at::parallel_for(0, n_items, std::max<int64_t>(1, kGrainElements / per_item), launch);
}

// ---------------------------------------------------------------------------------------------- operators

void interpolate_out(const Tensor& x, const Tensor& baseline, const Tensor& example, const Tensor& alpha,
                     const Tensor& out) {
  constexpr auto op = "interpolate";
  check_cpu(op, {x, baseline, example, alpha, out});
  const auto dtype = dtype_of(op, "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 1, "igfast::interpolate: x must have a batch dimension, got 0 dimensions");
  check_baseline(op, baseline, x);
  check_features(op, "out", out, x);
  check_rows(op, example, alpha, out.size(0), x.size(0));
  TORCH_CHECK_TYPE(out.scalar_type() == x.scalar_type(), "igfast::interpolate: out must be ", x.scalar_type(),
                   " as x is, got ", out.scalar_type());
  TORCH_CHECK_VALUE(out.is_non_overlapping_and_dense(),
                    "igfast::interpolate: out must not overlap itself and must be dense, got strides ", out.strides());
  if (out.numel() == 0) return;
  const size_t n_features = x.dim() - 1;
  std::vector<Layout> layouts{layout_of(out, out.size(0), n_features, true), layout_of(x, x.size(0), n_features),
                              layout_of(baseline, x.size(0), n_features)};
  const auto features = merge_dimensions(op, x.sizes().slice(1), layouts);
  const GroupedRows rows(example);
  const igfast::InterpolateArgs args{dtype,
                                     features,
                                     operand_of(layouts[1]),
                                     operand_of(layouts[2]),
                                     operand_of(layouts[0]),
                                     rows.view(),
                                     alpha.const_data_ptr<double>()};
  parallel_over_items(args.rows.n_groups * igfast::items_per_group(features), out.numel(),
                      [&](int64_t begin, int64_t end) { igfast::interpolate_cpu(args, begin, end); });
}

Tensor interpolate(const Tensor& x, const Tensor& baseline, const Tensor& example, const Tensor& alpha,
                   at::MemoryFormat memory_format) {
  TORCH_CHECK_VALUE(x.dim() >= 1, "igfast::interpolate: x must have a batch dimension, got 0 dimensions");
  auto sizes = x.sizes().vec();
  sizes[0] = example.numel();
  auto out = at::empty(sizes, x.options().memory_format(memory_format));
  interpolate_out(x, baseline, example, alpha, out);
  return out;
}

void accumulate_(const Tensor& acc, const Tensor& grads, const Tensor& example, const Tensor& weight,
                 const std::optional<Tensor>& finite) {
  constexpr auto op = "accumulate_";
  check_cpu(op, {acc, grads, example, weight});
  const auto dtype = dtype_of(op, "grads", grads);
  check_accumulator(op, acc, grads);
  check_features(op, "grads", grads, acc);
  check_rows(op, example, weight, grads.size(0), acc.size(0));
  if (finite.has_value()) {
    check_cpu(op, {*finite});
    TORCH_CHECK_VALUE(finite->scalar_type() == at::kByte && finite->dim() == 1 && finite->size(0) == grads.size(0) &&
                          finite->is_contiguous(),
                      "igfast::accumulate_: finite must be contiguous uint8 of shape (", grads.size(0), "), got ",
                      finite->scalar_type(), " ", finite->sizes());
  }
  if (grads.numel() == 0) return;
  const size_t n_features = acc.dim() - 1;
  std::vector<Layout> layouts{layout_of(grads, grads.size(0), n_features),
                              layout_of(acc, acc.size(0), n_features, true)};
  const auto features = merge_dimensions(op, acc.sizes().slice(1), layouts);
  const GroupedRows rows(example);
  const igfast::AccumulateArgs args{dtype,
                                    features,
                                    operand_of(layouts[1]),
                                    operand_of(layouts[0]),
                                    rows.view(),
                                    weight.const_data_ptr<double>(),
                                    finite.has_value() ? finite->mutable_data_ptr<uint8_t>() : nullptr};
  parallel_over_items(args.rows.n_groups * igfast::items_per_group(features), grads.numel(),
                      [&](int64_t begin, int64_t end) { igfast::accumulate_cpu(args, begin, end); });
}

Tensor scale_(const Tensor& acc, const Tensor& x, const Tensor& baseline) {
  constexpr auto op = "scale_";
  check_cpu(op, {acc, x, baseline});
  const auto dtype = dtype_of(op, "x", x);
  check_accumulator(op, acc, x);
  TORCH_CHECK_VALUE(acc.sizes() == x.sizes() && x.dim() >= 1, "igfast::scale_: acc has shape ", acc.sizes(),
                    ", must be that of x, ", x.sizes());
  check_baseline(op, baseline, x);
  const int64_t batch = x.size(0);
  auto sums = at::zeros({batch}, x.options().dtype(at::kDouble));
  if (acc.numel() == 0) return sums;
  const size_t n_features = x.dim() - 1;
  std::vector<Layout> layouts{layout_of(acc, batch, n_features, true), layout_of(x, batch, n_features),
                              layout_of(baseline, batch, n_features)};
  const auto features = merge_dimensions(op, x.sizes().slice(1), layouts);
  const int64_t per_example = igfast::items_per_group(features);
  std::vector<double> partial_sums(batch * per_example);
  const igfast::ScaleArgs args{
      dtype, features, operand_of(layouts[0]), operand_of(layouts[1]), operand_of(layouts[2]), partial_sums.data()};
  parallel_over_items(batch * per_example, acc.numel(),
                      [&](int64_t begin, int64_t end) { igfast::scale_cpu(args, begin, end); });
  auto* total = sums.mutable_data_ptr<double>();
  for (int64_t item = 0; item < batch * per_example; ++item) total[item / per_example] += partial_sums[item];
  return sums;
}

}  // namespace

TORCH_LIBRARY(igfast, m) {
  m.def("interpolate(Tensor x, Tensor baseline, Tensor example, Tensor alpha, MemoryFormat memory_format) -> Tensor");
  m.def("interpolate.out(Tensor x, Tensor baseline, Tensor example, Tensor alpha, *, Tensor(a!) out) -> ()");
  m.def("accumulate_(Tensor(a!) acc, Tensor grads, Tensor example, Tensor weight, Tensor(b!)? finite=None) -> ()");
  m.def("scale_(Tensor(a!) acc, Tensor x, Tensor baseline) -> Tensor");
}

TORCH_LIBRARY_IMPL(igfast, CPU, m) {
  m.impl("interpolate", &interpolate);
  m.impl("interpolate.out", &interpolate_out);
  m.impl("accumulate_", &accumulate_);
  m.impl("scale_", &scale_);
}

namespace {

const char* isa_name(igfast::Isa isa) {
  switch (isa) {
    case igfast::Isa::kAvx512: return "avx512";
    case igfast::Isa::kAvx2: return "avx2";
    case igfast::Isa::kBaseline: break;
  }
  return "baseline";
}

}  // namespace

// Found by igfast/ops/_load.py in the file's bytes before the module is imported: a build for another torch version may
// fail to load, or worse, load.
extern "C" __attribute__((used, visibility("default"))) const char igfast_built_for_torch[] =
    "igfast-built-for-torch=" TORCH_VERSION ";";

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled operators of igfast; importing it registers torch.ops.igfast.";
  m.def(
      "build_info",
      [] {
        pybind11::dict info;
        info["version"] = IGFAST_VERSION;
        info["torch"] = TORCH_VERSION;
        info["compiler"] = __VERSION__;
        info["isa"] = isa_name(igfast::cpu_isa());
        info["cuda"] = false;
        info["cuda_architectures"] = pybind11::tuple();
        return info;
      },
      "What this binary was built with: version, torch, compiler, isa (as dispatched on this machine), cuda, "
      "cuda_architectures.");
  m.def("enter_host_pool", &igfast::enter_host_pool, "Makes PyTorch keep freed CPU blocks; False if it cannot.");
  m.def("leave_host_pool", &igfast::leave_host_pool, "Undoes one enter_host_pool.");
  m.def("empty_host_pool", &igfast::empty_host_pool, "Frees the kept blocks that nobody uses.");
  m.def("set_host_pool_slack", &igfast::set_host_pool_slack,
        "Lets this thread's requests take kept blocks that are so many times as large.");
  m.def("host_pool_bytes", &igfast::host_pool_bytes, "Bytes of the pool's blocks, in use or kept.");
  m.def("host_pool_peak", &igfast::host_pool_peak, "The most of host_pool_bytes() since the pool was entered.");
  m.def("set_host_pool_limit", &igfast::set_host_pool_limit,
        "Makes this thread's requests beyond it fail; negative for none. Returns the one before.");
}
