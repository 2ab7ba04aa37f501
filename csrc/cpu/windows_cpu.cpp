#include "../kernels.h"

#define IGFAST_KERNEL "windows_kernel.h"
#include "for_each_isa.h"

namespace igfast {

void add_windows_cpu(const WindowArgs& args, int64_t begin, int64_t end) {
  IGFAST_DISPATCH(add_windows, args, begin, end);
}

}  // namespace igfast
