// The (x - baseline) factor, in place, with the float64 sum of the result that the convergence delta needs.
#include "items.h"

namespace igfast::IGFAST_ISA {

template <typename T>
IGFAST_INLINE double span(Math<T>* __restrict acc, int64_t acc_stride, const T* x, int64_t x_stride, const T* b,
                          int64_t b_stride, int64_t n) {
  DoubleVector sums{};
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    const Vector<T> difference = load_vector(x + i * x_stride, x_stride) - load_vector(b + i * b_stride, b_stride);
    Math<T>* to = acc + i * acc_stride;
    const Vector<T> scaled = load_vector(to, acc_stride) * difference;
    store_vector(to, acc_stride, scaled);
    sums += widen_and_fold(scaled);
  }
  auto sum = sum_of_lanes<double>(sums);
  for (; i < n; ++i) {
    const Math<T> scaled = acc[i * acc_stride] * (load(x[i * x_stride]) - load(b[i * b_stride]));
    acc[i * acc_stride] = scaled;
    sum += scaled;
  }
  return sum;
}

template <typename T>
IGFAST_INLINE double row(Math<T>* acc, int64_t sa, const T* x, int64_t sx, const T* b, int64_t sb, int64_t n) {
  if (sa == 1 && sx == 1 && sb == 1) return span(acc, 1, x, 1, b, 1, n);
  if (sa == 1 && sx == 1 && sb == 0) return span(acc, 1, x, 1, b, 0, n);
  return span(acc, sa, x, sx, b, sb, n);
}

template <typename T>
void scale_items(const ScaleArgs& args, int64_t begin, int64_t end) {
  const Features& f = args.features;
  const int32_t inner = f.n_dims - 1;
  const int32_t middle = f.n_dims - 2;
  for (int64_t index = begin; index < end; ++index) {
    const Item item(f, index);
    auto* acc = at<Math<T>>(args.acc, item.offset(f, args.acc, item.group));
    const T* x = at<const T>(args.x, item.offset(f, args.x, item.group));
    const T* b = at<const T>(args.baseline, item.offset(f, args.baseline, item.group));
    double sum = 0;
    for (int64_t m = 0; m < f.sizes[middle]; ++m) {
      sum += row(acc + m * args.acc.strides[middle], args.acc.strides[inner], x + m * args.x.strides[middle],
                 args.x.strides[inner], b + m * args.baseline.strides[middle], args.baseline.strides[inner],
                 item.inner_size);
    }
    args.partial_sums[index] = sum;
  }
}

inline void scale(const ScaleArgs& args, int64_t begin, int64_t end) { IGFAST_FOR_DTYPE(scale_items, args, begin, end) }

}  // namespace igfast::IGFAST_ISA
