#include "node.h"

#include <ATen/ATen.h>
#include <sys/mman.h>

namespace igfast::lean {

Tensor unbacked_tensor(IntArrayRef sizes, IntArrayRef strides, const at::TensorOptions& options) {
  if (options.device().type() != at::kCPU) return at::empty_strided(sizes, strides, options);
  int64_t n_elements = 1;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] == 0) return at::empty_strided(sizes, strides, options);
    n_elements += (sizes[d] - 1) * strides[d];
  }
  // A read-only anonymous mapping commits no memory: reads see the kernel's page of zeros. For few pages, mapping takes
  // longer than allocating.
  constexpr size_t kFewBytes = 1 << 16;
  const size_t n_bytes = n_elements * options.dtype().itemsize();
  if (n_bytes <= kFewBytes) return at::empty_strided(sizes, strides, options);
  void* pages = mmap(nullptr, n_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TORCH_CHECK(pages != MAP_FAILED, "igfast: cannot map ", n_bytes, " bytes of address space");
  return at::from_blob(pages, sizes, strides, [n_bytes](void* data) { munmap(data, n_bytes); }, options);
}

}  // namespace igfast::lean
