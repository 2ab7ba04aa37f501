// Path points: out[r] = b + alpha (x - b).
#include "items.h"

namespace igfast::IGFAST_ISA {

// Points of float32 are computed in float64, so that they are correctly rounded. Computed in float32, a point is off by
// up to two units in the last place. The attribution of a ReLU network is then off by 10 to 20 % more
// (EfficientNet-Lite0, error against float64).
template <typename T>
using Point = std::conditional_t<sizeof(T) == sizeof(float), double, Math<T>>;

template <typename T, bool kIsNumber>
void write_points(T* __restrict out, const T* __restrict x, const T* __restrict b, int64_t n, double alpha) {
  const auto a = static_cast<Point<T>>(alpha);
  int64_t i = 0;
  if constexpr (sizeof(T) == sizeof(Half)) {  // the compiler does not vectorise the conversions
    for (; i + kLanes<T> <= n; i += kLanes<T>) {
      const Vector<T> baseline = kIsNumber ? Vector<T>{} + load(*b) : load_contiguous(b + i);
      store_contiguous(out + i, baseline + a * (load_contiguous(x + i) - baseline));
    }
  }
  for (; i < n; ++i) {
    const Point<T> baseline = load(b[kIsNumber ? 0 : i]);
    store(&out[i], static_cast<Math<T>>(baseline + a * (static_cast<Point<T>>(load(x[i])) - baseline)));
  }
}

template <typename T>
void interpolate_items(const InterpolateArgs& args, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    const Item item(args.n_features, index);
    const int64_t example = args.example[item.row];
    const T *const x = item.of<T>(args.x, example), *const b = item.of<T>(args.baseline, example);
    T* const out = item.of<T>(args.out, item.row);
    const double alpha = args.alpha[item.row];
    // The path's ends are copied, so that they are exact even if the other end is infinite (0 * inf is NaN).
    if (alpha == 1.0) {
      std::memcpy(out, x, item.n * sizeof(T));
    } else if (alpha == 0.0 && !args.baseline.is_number) {
      std::memcpy(out, b, item.n * sizeof(T));
    } else if (alpha == 0.0) {
      for (int64_t i = 0; i < item.n; ++i) out[i] = *b;
    } else if (args.baseline.is_number) {
      write_points<T, true>(out, x, b, item.n, alpha);
    } else {
      write_points<T, false>(out, x, b, item.n, alpha);
    }
  }
}

inline void interpolate(const InterpolateArgs& args, int64_t begin, int64_t end) {
  IGFAST_FOR_DTYPE(interpolate_items, args, begin, end)
}

}  // namespace igfast::IGFAST_ISA
