#include "../kernels.h"

#define IGFAST_KERNEL "affine_kernel.h"
#include "for_each_isa.h"

namespace igfast {

void affine_cpu(const AffineArgs& args, int64_t begin, int64_t end) { IGFAST_DISPATCH(affine, args, begin, end); }

}  // namespace igfast
