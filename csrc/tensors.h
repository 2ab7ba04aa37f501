// Tensors as the kernels see them.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels.h"

namespace igfast {

inline DType dtype_of(const char* op, const char* name, const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf: return DType::kHalf;
    case at::kBFloat16: return DType::kBFloat16;
    case at::kFloat: return DType::kFloat;
    case at::kDouble: return DType::kDouble;
    default:
      TORCH_CHECK_TYPE(false, "igfast::", op, ": ", name, " must be float16, bfloat16, float32 or float64, got ",
                       tensor.scalar_type());
  }
}

// Below about this many element updates a second thread costs more than it saves (2 cores, 2.1 GHz: 10 us to wake one).
constexpr int64_t kGrainElements = 32768;

}  // namespace igfast
