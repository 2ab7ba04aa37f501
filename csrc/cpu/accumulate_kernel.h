// The quadrature sum: acc[example[r]] += weight[r] * grads[r], in row order, so the result does not depend on threads.
#include "items.h"

namespace igfast::IGFAST_ISA {

// Adds `weight * grads` to `acc` and returns 0, or NaN if the stretch holds a NaN or an infinity: 0 * g is 0 for every
// other number, so the check costs one multiply-add and no second pass.
template <typename T>
IGFAST_INLINE Math<T> span(Math<T>* __restrict acc, int64_t acc_stride, const T* __restrict grads, int64_t grads_stride,
                           int64_t n, Math<T> weight) {
  Vector<T> poisons{};
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    const Vector<T> g = load_vector(grads + i * grads_stride, grads_stride);
    poisons += g * 0;
    Math<T>* to = acc + i * acc_stride;
    store_vector(to, acc_stride, load_vector(to, acc_stride) + g * weight);
  }
  auto poison = sum_of_lanes<Math<T>>(poisons);
  for (; i < n; ++i) {
    const Math<T> g = load(grads[i * grads_stride]);
    poison += g * 0;
    acc[i * acc_stride] += g * weight;
  }
  return poison;
}

template <typename T>
IGFAST_INLINE Math<T> row(Math<T>* acc, int64_t sa, const T* grads, int64_t sg, int64_t n, Math<T> weight) {
  if (sa == 1 && sg == 1) return span(acc, 1, grads, 1, n, weight);
  if (sa == 1 && sg == 3) return span(acc, 1, grads, 3, n, weight);
  return span(acc, sa, grads, sg, n, weight);
}

template <typename T>
void accumulate_items(const AccumulateArgs& args, int64_t begin, int64_t end) {
  const Features& f = args.features;
  const int32_t inner = f.n_dims - 1;
  const int32_t middle = f.n_dims - 2;
  for (int64_t index = begin; index < end; ++index) {
    const Item item(f, index);
    auto* acc = at<Math<T>>(args.acc, item.offset(f, args.acc, args.rows.example[item.group]));
    for (int64_t i = args.rows.begin[item.group]; i < args.rows.begin[item.group + 1]; ++i) {
      const int64_t r = args.rows.row[i];
      const T* grads = at<const T>(args.grads, item.offset(f, args.grads, r));
      Math<T> poison = 0;
      for (int64_t m = 0; m < f.sizes[middle]; ++m) {
        poison +=
            row(acc + m * args.acc.strides[middle], args.acc.strides[inner], grads + m * args.grads.strides[middle],
                args.grads.strides[inner], item.inner_size, static_cast<Math<T>>(args.weight[r]));
      }
      // Several threads may find the same row not finite; all of them write the same byte.
      if (args.finite != nullptr && poison != 0) __atomic_store_n(&args.finite[r], uint8_t{0}, __ATOMIC_RELAXED);
    }
  }
}

inline void accumulate(const AccumulateArgs& args, int64_t begin, int64_t end) {
  IGFAST_FOR_DTYPE(accumulate_items, args, begin, end)
}

}  // namespace igfast::IGFAST_ISA
