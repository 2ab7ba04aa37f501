// The operators of igfast: schemas and the CPU launchers, and the pybind11 module igfast._C. The sources that include
// torch headers, which take half a minute each to compile, are this one, cuda_glue.cpp and lean/*.cpp; the kernels see
// kernels.h alone.
#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>

#include "cuda_glue.h"
#include "kernels.h"
#include "lean/python.h"
#include "memory/pool.h"
#include "operands.h"
#include "tensors.h"

namespace {

using at::Tensor;

Tensor interpolate(const Tensor& x, const Tensor& baseline, const Tensor& example, const Tensor& alpha) {
  const auto kernel = [](const igfast::InterpolateArgs& args) {
    igfast::for_items(args.n_rows * igfast::n_tiles(args.n_features), args.n_rows * args.n_features,
                      [&](int64_t begin, int64_t end) { igfast::interpolate_cpu(args, begin, end); });
  };
  return igfast::interpolate_with(kernel, x, baseline, example, alpha);
}

void accumulate_(const Tensor& acc, const Tensor& grads, const Tensor& example, const Tensor& weight,
                 const std::optional<Tensor>& finite) {
  const auto kernel = [](igfast::AccumulateArgs args) {
    const int64_t n_tiles = igfast::n_tiles(args.n_features), n_threads = at::get_num_threads();
    args.n_parts = n_tiles < n_threads ? std::min(n_threads, args.n_examples) : 1;
    igfast::for_items(args.n_parts * n_tiles, args.n_rows * args.n_features,
                      [&](int64_t begin, int64_t end) { igfast::accumulate_cpu(args, begin, end); });
  };
  igfast::accumulate_with(kernel, acc, grads, example, weight, finite);
}

void scale_(const Tensor& acc, const Tensor& x, const Tensor& baseline) {
  const auto kernel = [](const igfast::ScaleArgs& args) {
    igfast::for_items(args.n_examples * igfast::n_tiles(args.n_features), args.n_examples * args.n_features,
                      [&](int64_t begin, int64_t end) { igfast::scale_cpu(args, begin, end); });
  };
  igfast::scale_with(kernel, acc, x, baseline);
}

}  // namespace

TORCH_LIBRARY(igfast, m) {
  m.def("interpolate(Tensor x, Tensor baseline, Tensor example, Tensor alpha) -> Tensor");
  m.def("accumulate_(Tensor(a!) acc, Tensor grads, Tensor example, Tensor weight, Tensor(b!)? finite=None) -> ()");
  m.def("scale_(Tensor(a!) acc, Tensor x, Tensor baseline) -> ()");
}

TORCH_LIBRARY_IMPL(igfast, CPU, m) {
  m.impl("interpolate", &interpolate);
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
  igfast::lean::define_all(m);
}
