// The walk over work items, shared by the kernels. Included once per instruction set, hence no include guard.
#include "vector.h"

namespace igfast::IGFAST_ISA {

template <typename T>
IGFAST_INLINE T* at(const Operand& operand, int64_t offset) {
  return static_cast<T*>(operand.data) + offset;
}

// Where one work item lies: a stretch of the innermost dimension at one outer index of one group.
struct Item {
  int64_t group;
  int64_t outer;       // flat index over sizes[0 .. n_dims - 2)
  int64_t inner;       // first element of the stretch in the innermost dimension
  int64_t inner_size;  // elements in it, at most kTile

  IGFAST_INLINE Item(const Features& features, int64_t index) {
    const int64_t tile = index % features.n_tiles;
    group = index / features.n_tiles / features.n_outer;
    outer = index / features.n_tiles % features.n_outer;
    inner = tile * kTile;
    const int64_t left = features.sizes[features.n_dims - 1] - inner;
    inner_size = left < kTile ? left : kTile;
  }

  // Elements from the operand's first element to the item's first, at the given example or row.
  IGFAST_INLINE int64_t offset(const Features& features, const Operand& operand, int64_t batch_index) const {
    int64_t result = batch_index * operand.batch_stride + inner * operand.strides[features.n_dims - 1];
    int64_t rest = outer;
    for (int32_t d = features.n_dims - 3; d >= 0; --d) {
      result += rest % features.sizes[d] * operand.strides[d];
      rest /= features.sizes[d];
    }
    return result;
  }
};

}  // namespace igfast::IGFAST_ISA
