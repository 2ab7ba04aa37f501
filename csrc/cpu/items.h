// Work items of the kernels. Included once per instruction set, hence no include guard.
#include "vector.h"

namespace igfast::IGFAST_ISA {

// A work item: consecutive features of one row, one example or one part of the examples.
struct Item {
  int64_t n_features;
  int64_t row;
  int64_t first;  // the first of its features
  int64_t n;      // number of its features, at most kStretch

  IGFAST_INLINE Item(int64_t n_features, int64_t index)
      : n_features(n_features),
        row(index / n_stretches(n_features)),
        first(index % n_stretches(n_features) * kStretch) {
    n = n_features - first < kStretch ? n_features - first : kStretch;
  }

  template <typename T>
  IGFAST_INLINE T* of(void* rows, int64_t r) const {
    return static_cast<T*>(rows) + r * n_features + first;
  }
  template <typename T>
  IGFAST_INLINE const T* of(const void* rows, int64_t r) const {
    return static_cast<const T*>(rows) + r * n_features + first;
  }
  template <typename T>
  IGFAST_INLINE const T* of(const Baseline& baseline, int64_t example) const {
    const auto* data = static_cast<const T*>(baseline.data);
    return baseline.is_number ? data : data + example * baseline.stride + first;
  }
};

}  // namespace igfast::IGFAST_ISA
