#include "../kernels.h"

#define IGFAST_KERNEL "scale_kernel.h"
#include "for_each_isa.h"

namespace igfast {

void scale_cpu(const ScaleArgs& args, int64_t begin, int64_t end) { IGFAST_DISPATCH(scale, args, begin, end); }

}  // namespace igfast
