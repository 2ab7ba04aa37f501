// Dtypes and parallel loops for the kernels' tensors.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

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

// Below about this many element updates, a second thread does not pay (2 cores, 2.1 GHz: waking a thread takes 10 us).
constexpr int64_t kGrainElements = 32768;

// Runs `launch(begin, end)` in parallel over items of equal size, which update `n_elements` in total.
template <typename Launch>
void for_items(int64_t n_items, int64_t n_elements, const Launch& launch) {
  const int64_t per_item = n_elements / std::max<int64_t>(1, n_items);
  at::parallel_for(0, n_items, std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, per_item)), launch);
}

}  // namespace igfast
