// The operators on CUDA: the checks and layouts of the CPU's, and the kernels of cuda/ on the current stream.
//
// The stream comes through c10, so that no CUDA header is needed here, and a CPU build of torch compiles it too.
#ifdef IGFAST_CUDA

#include "cuda_glue.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
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

Tensor interpolate(const Tensor& x, const Tensor& baseline, const Tensor& example, const Tensor& alpha) {
  const auto kernel = [&](const InterpolateArgs& args) {
    on_stream("interpolate", x.device(), [&](void* stream) { return interpolate_cuda(args, stream); });
  };
  return interpolate_with(kernel, x, baseline, example, alpha);
}

void accumulate_(const Tensor& acc, const Tensor& grads, const Tensor& example, const Tensor& weight,
                 const std::optional<Tensor>& finite) {
  const auto kernel = [&](AccumulateArgs args) {
    const Tensor links = at::empty({args.n_examples + args.n_rows}, example.options());
    args.links = links.mutable_data_ptr<int64_t>();
    on_stream("accumulate_", acc.device(), [&](void* stream) { return accumulate_cuda(args, stream); });
  };
  accumulate_with(kernel, acc, grads, example, weight, finite);
}

void scale_(const Tensor& acc, const Tensor& x, const Tensor& baseline) {
  const auto kernel = [&](const ScaleArgs& args) {
    on_stream("scale_", x.device(), [&](void* stream) { return scale_cuda(args, stream); });
  };
  scale_with(kernel, acc, x, baseline);
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
  m.impl("accumulate_", &igfast::accumulate_);
  m.impl("scale_", &igfast::scale_);
}

#endif  // IGFAST_CUDA
