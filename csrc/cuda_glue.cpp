// The operators on CUDA: the checks and layouts of the CPU's, and the kernels of cuda/ on the current stream.
//
// The stream comes through c10, so that no CUDA header is needed here, and a CPU build of torch compiles it too.
#ifdef IGFAST_CUDA

#include "cuda_glue.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include "operands.h"

namespace igfast {
namespace {

// Calls `launch(stream)` with the device's current stream, on that device.
template <typename Launch>
void on_stream(const char* op, at::Device device, const Launch& launch) {
  const c10::DeviceGuard guard(device);
  const c10::Stream stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  const char* failure = launch(stream.native_handle());
  TORCH_CHECK(failure == nullptr, "igfast::", op, ": the launch on ", device, " failed: ", failure);
}

DeviceRows rows_of(const Tensor& example, int64_t n_examples) {
  return {example.numel(), n_examples, example.const_data_ptr<int64_t>()};
}

void interpolate_out(const Tensor& x, const Tensor& baseline, const Tensor& example, const Tensor& alpha,
                     const Tensor& out) {
  CudaInterpolateArgs args{};
  if (!lay_out(args, x, baseline, example, alpha, out)) return;
  args.rows = rows_of(example, x.size(0));
  on_stream("interpolate", x.device(), [&](void* stream) { return interpolate_cuda(args, stream); });
}

Tensor interpolate(const Tensor& x, const Tensor& baseline, const Tensor& example, const Tensor& alpha,
                   at::MemoryFormat memory_format) {
  Tensor out = empty_rows(x, example.numel(), memory_format);
  interpolate_out(x, baseline, example, alpha, out);
  return out;
}

void accumulate_(const Tensor& acc, const Tensor& grads, const Tensor& example, const Tensor& weight,
                 const std::optional<Tensor>& finite) {
  CudaAccumulateArgs args{};
  if (!lay_out(args, acc, grads, example, weight, finite)) return;
  args.rows = rows_of(example, acc.size(0));
  const Tensor links = at::empty({args.rows.n_examples + args.rows.n_rows}, example.options());
  args.links = links.mutable_data_ptr<int64_t>();
  on_stream("accumulate_", acc.device(), [&](void* stream) { return accumulate_cuda(args, stream); });
}

Tensor scale_(const Tensor& acc, const Tensor& x, const Tensor& baseline) {
  ScaleArgs args{};
  const bool is_empty = !lay_out(args, acc, x, baseline);
  const int64_t batch = x.size(0);
  const auto in_double = x.options().dtype(at::kDouble);
  if (is_empty) return at::zeros({batch}, in_double);
  Tensor sums = at::empty({batch}, in_double);
  const Tensor scratch = at::empty({scale_scratch_cuda(args.features, batch)}, in_double);
  args.partial_sums = scratch.mutable_data_ptr<double>();
  auto* to = sums.mutable_data_ptr<double>();
  on_stream("scale_", x.device(), [&](void* stream) { return scale_cuda(args, batch, to, stream); });
  return sums;
}

}  // namespace

void gate_on_cuda(const char* op, const GateArgs& args, at::Device device) {
  if (args.n_elements == 0) return;
  on_stream(op, device, [&](void* stream) { return gate_cuda(args, stream); });
}

void gate_grad_on_cuda(const char* op, const GateArgs& args, at::Device device) {
  if (args.n_elements == 0) return;
  on_stream(op, device, [&](void* stream) { return gate_grad_cuda(args, stream); });
}

void batch_norm_on_cuda(const char* op, const BatchNormArgs& args, at::Device device) {
  on_stream(op, device, [&](void* stream) { return batch_norm_cuda(args, stream); });
}

void batch_norm_grad_on_cuda(const char* op, const BatchNormArgs& args, at::Device device) {
  on_stream(op, device, [&](void* stream) { return batch_norm_grad_cuda(args, stream); });
}

void max_pool_on_cuda(const char* op, const MaxPoolArgs& args, at::Device device) {
  on_stream(op, device, [&](void* stream) { return max_pool_cuda(args, stream); });
}

void max_pool_grad_on_cuda(const char* op, const MaxPoolArgs& args, at::Device device) {
  on_stream(op, device, [&](void* stream) { return max_pool_grad_cuda(args, stream); });
}

}  // namespace igfast

TORCH_LIBRARY_IMPL(igfast, CUDA, m) {
  m.impl("interpolate", &igfast::interpolate);
  m.impl("interpolate.out", &igfast::interpolate_out);
  m.impl("accumulate_", &igfast::accumulate_);
  m.impl("scale_", &igfast::scale_);
}

#endif  // IGFAST_CUDA
