#include "../kernels.h"

#define IGFAST_KERNEL "accumulate_kernel.h"
#include "for_each_isa.h"

namespace igfast {

void accumulate_cpu(const AccumulateArgs& args, int64_t begin, int64_t end) {
  IGFAST_DISPATCH(accumulate, args, begin, end);
}

}  // namespace igfast
