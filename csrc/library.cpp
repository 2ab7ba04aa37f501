// The operators on path points (schemas, argument checks, CPU and CUDA) and the pybind11 module igfast._C. Only this
// file, lean/*.cpp and memory/pool.cpp include torch headers and so take half a minute each to compile.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sort.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <tuple>

#include "kernels.h"
#include "lean/python.h"
#include "memory/pool.h"
#include "on_cuda.h"
#include "tensors.h"

namespace igfast {
namespace {

using at::Tensor;

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
  TORCH_CHECK_VALUE(acc.is_contiguous(acc.suggest_memory_format()), "igfast::", op,
                    ": acc must be contiguous or channels-last, got strides ", acc.strides());
}

void check_device(const char* op, at::Device device, at::TensorList tensors) {
  for (const Tensor& tensor : tensors) {
    TORCH_CHECK_VALUE(tensor.device() == device && tensor.layout() == at::kStrided, "igfast::", op,
                      ": all tensors must be dense and on ", device, ", got ", tensor.device());
  }
}

// Checks the per-row arrays: `example` int64 and `values` (alpha or weight) float64, both of length n_rows. The
// examples' values are checked only on the CPU; CUDA kernels assert them.
void check_rows(const char* op, const Tensor& example, const Tensor& values, int64_t n_rows, int64_t n_examples) {
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
void check_baseline(const char* op, const Tensor& baseline, const Tensor& x) {
  TORCH_CHECK_TYPE(baseline.scalar_type() == x.scalar_type(), "igfast::", op, ": baseline must be ", x.scalar_type(),
                   " as x is, got ", baseline.scalar_type());
  if (baseline.dim() == 0) return;
  check_features(op, "baseline", baseline, x);
  TORCH_CHECK_VALUE(baseline.size(0) == 1 || baseline.size(0) == x.size(0), "igfast::", op, ": baseline has ",
                    baseline.size(0), " examples, must have 1 or ", x.size(0));
}

// Returns a baseline in a memory order, copied only where necessary.
Tensor ordered(const Tensor& baseline, at::MemoryFormat order) {
  return baseline.dim() == 0 ? baseline : baseline.contiguous(order);
}

Baseline baseline_of(const Tensor& ordered, int64_t n_features) {
  const bool is_shared = ordered.dim() == 0 || ordered.size(0) == 1;
  return {ordered.const_data_ptr(), is_shared ? 0 : n_features, ordered.dim() == 0};
}

int64_t n_features_of(const Tensor& rows) { return rows.numel() / rows.size(0); }

// ---------------------------------------------------------------------------------------------- operators

// The points are in the memory order of x, contiguous or channels-last.
Tensor interpolate(const Tensor& given_x, const Tensor& given_baseline, const Tensor& example, const Tensor& alpha) {
  constexpr auto op = "interpolate";
  TORCH_CHECK_VALUE(given_x.dim() >= 1, "igfast::interpolate: x must have a batch dimension, got 0 dimensions");
  check_device(op, given_x.device(), {given_x, given_baseline, example, alpha});
  const auto dtype = dtype_of(op, "x", given_x);
  check_baseline(op, given_baseline, given_x);
  check_rows(op, example, alpha, example.numel(), given_x.size(0));
  const auto order = given_x.suggest_memory_format();
  const Tensor x = given_x.contiguous(order), baseline = ordered(given_baseline, order);
  at::DimVector sizes(x.sizes());
  sizes[0] = example.numel();
  Tensor out = at::empty(sizes, x.options().memory_format(order));
  if (out.numel() == 0) return out;
  const int64_t n_features = n_features_of(out);
  const InterpolateArgs args{dtype,
                             out.size(0),
                             x.size(0),
                             n_features,
                             x.const_data_ptr(),
                             baseline_of(baseline, n_features),
                             example.const_data_ptr<int64_t>(),
                             alpha.const_data_ptr<double>(),
                             out.mutable_data_ptr()};
  if (x.is_cuda()) {
    on_cuda<interpolate_cuda>(op, args, x.device());
  } else {
    for_items(args.n_rows * n_stretches(n_features), out.numel(),
              [&](int64_t begin, int64_t end) { interpolate_cpu(args, begin, end); });
  }
  return out;
}

void accumulate_(const Tensor& acc, const Tensor& given_grads, const Tensor& example, const Tensor& weight,
                 const std::optional<Tensor>& finite) {
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
  AccumulateArgs args{};
  args.dtype = dtype;
  args.n_rows = grads.size(0);
  args.n_examples = acc.size(0);
  args.n_features = n_features_of(grads);
  args.acc = acc.mutable_data_ptr();
  args.grads = grads.const_data_ptr();
  args.example = example.const_data_ptr<int64_t>();
  args.weight = weight.const_data_ptr<double>();
  args.finite = finite.has_value() ? finite->mutable_data_ptr<uint8_t>() : nullptr;
  if (acc.is_cuda()) {
    const Tensor links = at::empty({args.n_examples + args.n_rows}, example.options());
    args.links = links.mutable_data_ptr<int64_t>();
    Tensor sorted, order;
    // Looking for each row's next one takes rows x examples steps. A sort takes some 0.1 ms.
    constexpr int64_t kFewRows = 2048;
    if (args.n_rows > kFewRows && args.n_examples > 1) {
      std::tie(sorted, order) = at::sort(example, /*stable=*/true, /*dim=*/0, /*descending=*/false);
      args.sorted = sorted.const_data_ptr<int64_t>();
      args.order = order.const_data_ptr<int64_t>();
    }
    on_cuda<accumulate_cuda>(op, args, acc.device());
  } else {
    const int64_t stretches = n_stretches(args.n_features), n_threads = at::get_num_threads();
    args.n_parts = stretches < n_threads ? std::min(n_threads, args.n_examples) : 1;
    for_items(args.n_parts * stretches, grads.numel(),
              [&](int64_t begin, int64_t end) { accumulate_cpu(args, begin, end); });
  }
}

void scale_(const Tensor& acc, const Tensor& given_x, const Tensor& given_baseline) {
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
  const ScaleArgs args{
      dtype, x.size(0), n_features, acc.mutable_data_ptr(), x.const_data_ptr(), baseline_of(baseline, n_features)};
  if (acc.is_cuda()) {
    on_cuda<scale_cuda>(op, args, acc.device());
  } else {
    for_items(args.n_examples * n_stretches(n_features), acc.numel(),
              [&](int64_t begin, int64_t end) { scale_cpu(args, begin, end); });
  }
}

TORCH_LIBRARY(igfast, m) {
  m.def("interpolate(Tensor x, Tensor baseline, Tensor example, Tensor alpha) -> Tensor");
  m.def("accumulate_(Tensor(a!) acc, Tensor grads, Tensor example, Tensor weight, Tensor(b!)? finite=None) -> ()");
  m.def("scale_(Tensor(a!) acc, Tensor x, Tensor baseline) -> ()");
}

void implement(torch::Library& m) {
  m.impl("interpolate", &interpolate);
  m.impl("accumulate_", &accumulate_);
  m.impl("scale_", &scale_);
}

TORCH_LIBRARY_IMPL(igfast, CPU, m) { implement(m); }
#ifdef IGFAST_CUDA
TORCH_LIBRARY_IMPL(igfast, CUDA, m) { implement(m); }
#endif

const char* isa_name(igfast::Isa isa) {
  switch (isa) {
    case igfast::Isa::kAvx512: return "avx512";
    case igfast::Isa::kAvx2: return "avx2";
    case igfast::Isa::kBaseline: break;
  }
  return "baseline";
}

}  // namespace
}  // namespace igfast

// igfast/ops/_load.py reads this string from the file before the import. A build for another torch version may fail to
// load or, worse, load and misbehave.
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
        info["isa"] = igfast::isa_name(igfast::cpu_isa());
        info["cuda"] = igfast::kHasCuda;
        info["cuda_architectures"] = pybind11::str(IGFAST_CUDA_ARCHITECTURES);
        return info;
      },
      "What this binary was built with: version, torch, compiler, isa (as dispatched on this machine), cuda, "
      "cuda_architectures (compute capabilities, with commas).");
  m.def("enter_host_pool", &igfast::enter_host_pool, pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Makes PyTorch allocate from the pool in this thread; False if its CPU allocator was replaced.");
  m.def("leave_host_pool", &igfast::leave_host_pool, pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Undoes one enter_host_pool; returns how many are left in all threads.");
  m.def("empty_host_pool", &igfast::empty_host_pool, pybind11::arg("kept") = 0,
        pybind11::call_guard<pybind11::gil_scoped_release>(), "Decommits all free pages but `kept` bytes of them.");
  m.def("host_pool_bytes", &igfast::host_pool_bytes, "Returns the committed bytes of the pool, in use or free.");
  m.def("host_pool_peak", &igfast::host_pool_peak,
        "Returns the highest host_pool_bytes() since the first user entered.");
  m.def("host_pool_bytes_in_use", &igfast::host_pool_bytes_in_use, "Returns the bytes of the blocks in use.");
  m.def("host_pool_peak_in_use", &igfast::host_pool_peak_in_use,
        "Returns the highest host_pool_bytes_in_use() since it was restarted.");
  m.def("count_in_host_pool", &igfast::count_in_host_pool, pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Counts bytes that are allocated past the pool; negative to count them no longer.");
  m.def("pause_host_pool", &igfast::pause_host_pool,
        "Sends this thread's requests past the pool, or no longer; returns the previous setting.");
  m.def("restart_host_pool_peak", &igfast::restart_host_pool_peak,
        "Restarts host_pool_peak_in_use() at the bytes in use; returns the previous peak.");
  m.def("set_host_pool_limit", &igfast::set_host_pool_limit,
        "Makes this thread's requests beyond it fail; negative for no limit. Returns the previous limit.");
  igfast::lean::define_all(m);
}
