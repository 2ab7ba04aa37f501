// The operators of igfast: schemas and the CPU launchers, and the pybind11 module igfast._C. The sources that include
// torch headers, which take half a minute each to compile, are this one, cuda_glue.cpp and lean*.cpp; the kernels see
// kernels.h alone.
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda_glue.h"
#include "host_pool.h"
#include "kernels.h"
#include "lean_python.h"
#include "operands.h"
#include "tensors.h"

namespace {

using at::Tensor;

// Rows sorted by example, keeping their order within one.
struct GroupedRows {
  std::vector<int64_t> example, begin, row;

  GroupedRows(const char* op, const Tensor& examples, int64_t batch) : row(examples.numel()) {
    const auto* indices = examples.const_data_ptr<int64_t>();
    for (size_t r = 0; r < row.size(); ++r) {
      TORCH_CHECK_INDEX(indices[r] >= 0 && indices[r] < batch, "igfast::", op, ": example[", r, "] is ", indices[r],
                        ", must be in [0, ", batch, ")");
    }
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

// ---------------------------------------------------------------------------------------------- operators

void interpolate_out(const Tensor& x, const Tensor& baseline, const Tensor& example, const Tensor& alpha,
                     const Tensor& out) {
  igfast::InterpolateArgs args{};
  if (!igfast::lay_out(args, x, baseline, example, alpha, out)) return;
  const GroupedRows rows("interpolate", example, x.size(0));
  args.rows = rows.view();
  igfast::for_items(args.rows.n_groups * igfast::items_per_group(args.features), out.numel(),
                    [&](int64_t begin, int64_t end) { igfast::interpolate_cpu(args, begin, end); });
}

Tensor interpolate(const Tensor& x, const Tensor& baseline, const Tensor& example, const Tensor& alpha,
                   at::MemoryFormat memory_format) {
  Tensor out = igfast::empty_rows(x, example.numel(), memory_format);
  interpolate_out(x, baseline, example, alpha, out);
  return out;
}

void accumulate_(const Tensor& acc, const Tensor& grads, const Tensor& example, const Tensor& weight,
                 const std::optional<Tensor>& finite) {
  igfast::AccumulateArgs args{};
  if (!igfast::lay_out(args, acc, grads, example, weight, finite)) return;
  const GroupedRows rows("accumulate_", example, acc.size(0));
  args.rows = rows.view();
  igfast::for_items(args.rows.n_groups * igfast::items_per_group(args.features), grads.numel(),
                    [&](int64_t begin, int64_t end) { igfast::accumulate_cpu(args, begin, end); });
}

Tensor scale_(const Tensor& acc, const Tensor& x, const Tensor& baseline) {
  igfast::ScaleArgs args{};
  const bool is_empty = !igfast::lay_out(args, acc, x, baseline);
  const int64_t batch = x.size(0);
  auto sums = at::zeros({batch}, x.options().dtype(at::kDouble));
  if (is_empty) return sums;
  const int64_t per_example = igfast::items_per_group(args.features);
  std::vector<double> partial_sums(batch * per_example);
  args.partial_sums = partial_sums.data();
  igfast::for_items(batch * per_example, acc.numel(),
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
        info["cuda"] = igfast::kHasCuda;
        info["cuda_architectures"] = pybind11::str(IGFAST_CUDA_ARCHITECTURES);
        return info;
      },
      "What this binary was built with: version, torch, compiler, isa (as dispatched on this machine), cuda, "
      "cuda_architectures (compute capabilities, with commas).");
  m.def("enter_host_pool", &igfast::enter_host_pool, pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Makes PyTorch allocate from the pool on the CPU; False if it cannot.");
  m.def("leave_host_pool", &igfast::leave_host_pool, pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Undoes one enter_host_pool; returns how many are left.");
  m.def("empty_host_pool", &igfast::empty_host_pool, pybind11::arg("kept") = 0,
        pybind11::call_guard<pybind11::gil_scoped_release>(),
        "Returns pages that nobody uses to the system, all but so many bytes of them.");
  m.def("host_pool_bytes", &igfast::host_pool_bytes, "Bytes of the pool's pages, in use or kept.");
  m.def("host_pool_peak", &igfast::host_pool_peak, "The most of host_pool_bytes() since the pool was entered.");
  m.def("host_pool_bytes_in_use", &igfast::host_pool_bytes_in_use, "Bytes of the pool's blocks that are in use.");
  m.def("host_pool_peak_in_use", &igfast::host_pool_peak_in_use, "The most of those since the pool was entered.");
  m.def("pause_host_pool", &igfast::pause_host_pool,
        "Sends this thread's requests past the pool, or no longer. Returns what was so before.");
  m.def("restart_host_pool_peak", &igfast::restart_host_pool_peak,
        "Begins host_pool_peak_in_use() anew, and returns it as it was.");
  m.def("set_host_pool_limit", &igfast::set_host_pool_limit,
        "Makes this thread's requests beyond it fail; negative for none. Returns the one before.");
  igfast::define_lean_functions(m);
}
