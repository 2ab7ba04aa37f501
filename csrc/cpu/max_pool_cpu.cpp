#include "../kernels.h"

#define IGFAST_KERNEL "max_pool_kernel.h"
#include "for_each_isa.h"

namespace igfast {

void max_pool_cpu(const MaxPoolArgs& args, int64_t begin, int64_t end) { IGFAST_DISPATCH(max_pool, args, begin, end); }

void max_pool_grad_cpu(const MaxPoolArgs& args, int64_t begin, int64_t end) {
  IGFAST_DISPATCH(max_pool_grad, args, begin, end);
}

}  // namespace igfast
