#include "../kernels.h"

#define IGFAST_KERNEL "winograd_kernel.h"
#include "for_each_isa.h"

namespace igfast {

void winograd_tiles_cpu(const WinogradArgs& args, int64_t begin, int64_t end) {
  IGFAST_DISPATCH(winograd_tiles, args, begin, end);
}

void winograd_image_cpu(const WinogradArgs& args, int64_t begin, int64_t end) {
  IGFAST_DISPATCH(winograd_image, args, begin, end);
}

}  // namespace igfast
