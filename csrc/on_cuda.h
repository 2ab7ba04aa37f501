// Launches CUDA kernels on a device's current stream. The stream comes from c10, so this file needs no CUDA header and
// compiles with a CPU build of torch.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "kernels.h"

namespace igfast {

#ifdef IGFAST_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#define IGFAST_CUDA_ARCHITECTURES ""
#endif

// Calls a launcher of kernels.h. A build without CUDA has none, and raises an error.
template <auto launcher, typename Args>
void on_cuda([[maybe_unused]] const char* op, [[maybe_unused]] const Args& args, at::Device device) {
  if constexpr (kHasCuda) {
    const c10::DeviceGuard guard(device);
    const c10::Stream stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
    const char* failure = launcher(args, stream.native_handle());
    TORCH_CHECK(failure == nullptr, "igfast::", op, ": the launch on ", device, " failed: ", failure);
  } else {
    TORCH_CHECK_NOT_IMPLEMENTED(false, "igfast::", op, ": built without CUDA kernels, got tensors on ", device);
  }
}

inline void check_has_kernels(const char* op, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.is_cpu() || (kHasCuda && tensor.is_cuda()), "igfast::", op, ": there are no kernels for ",
                    tensor.device());
}

}  // namespace igfast
