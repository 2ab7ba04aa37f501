// The (x - baseline) factor, in place.
#include "items.h"

namespace igfast::IGFAST_ISA {

template <typename T, bool kIsNumber>
void scale_stretch(Math<T>* __restrict acc, const T* __restrict x, const T* __restrict b, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    const Vector<T> baseline = kIsNumber ? Vector<T>{} + load(*b) : load_contiguous(b + i);
    store_contiguous(acc + i, load_contiguous(acc + i) * (load_contiguous(x + i) - baseline));
  }
  for (; i < n; ++i) acc[i] *= load(x[i]) - load(b[kIsNumber ? 0 : i]);
}

template <typename T>
void scale_items(const ScaleArgs& args, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    const Item item(args.n_features, index);
    auto* acc = item.of<Math<T>>(args.acc, item.row);
    const T *const x = item.of<T>(args.x, item.row), *const b = item.of<T>(args.baseline, item.row);
    if (args.baseline.is_number) {
      scale_stretch<T, true>(acc, x, b, item.n);
    } else {
      scale_stretch<T, false>(acc, x, b, item.n);
    }
  }
}

inline void scale(const ScaleArgs& args, int64_t begin, int64_t end) { IGFAST_FOR_DTYPE(scale_items, args, begin, end) }

}  // namespace igfast::IGFAST_ISA
