// Kernels on a CUDA tensor's device and current stream, for operators whose autograd nodes live in lean/.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels.h"

namespace igfast {

#ifdef IGFAST_CUDA

constexpr bool kHasCuda = true;

void gate_on_cuda(const char* op, const GateArgs& args, at::Device device);
void gate_grad_on_cuda(const char* op, const GateArgs& args, at::Device device);
void batch_norm_on_cuda(const char* op, const BatchNormArgs& args, at::Device device);
void batch_norm_grad_on_cuda(const char* op, const BatchNormArgs& args, at::Device device);
void max_pool_on_cuda(const char* op, const MaxPoolArgs& args, at::Device device);
void max_pool_grad_on_cuda(const char* op, const MaxPoolArgs& args, at::Device device);

#else

#define IGFAST_CUDA_ARCHITECTURES ""

constexpr bool kHasCuda = false;

template <typename Args>
void refuse_cuda(const char* op, const Args&, at::Device device) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "igfast::", op, ": built without CUDA kernels, got tensors on ", device);
}
constexpr auto gate_on_cuda = refuse_cuda<GateArgs>;
constexpr auto gate_grad_on_cuda = refuse_cuda<GateArgs>;
constexpr auto batch_norm_on_cuda = refuse_cuda<BatchNormArgs>;
constexpr auto batch_norm_grad_on_cuda = refuse_cuda<BatchNormArgs>;
constexpr auto max_pool_on_cuda = refuse_cuda<MaxPoolArgs>;
constexpr auto max_pool_grad_on_cuda = refuse_cuda<MaxPoolArgs>;

#endif

inline void check_has_kernels(const char* op, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.is_cpu() || (kHasCuda && tensor.is_cuda()), "igfast::", op, ": there are no kernels for ",
                    tensor.device());
}

}  // namespace igfast
