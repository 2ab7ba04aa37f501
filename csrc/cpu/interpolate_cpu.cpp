#include "../kernels.h"

#define IGFAST_KERNEL "interpolate_kernel.h"
#include "for_each_isa.h"

namespace igfast {

void interpolate_cpu(const InterpolateArgs& args, int64_t begin, int64_t end) {
  IGFAST_DISPATCH(interpolate, args, begin, end);
}

}  // namespace igfast
