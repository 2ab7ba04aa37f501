// The quadrature sum: acc[example[r]] += weight[r] * grads[r], in row order, so threads do not change the result.
#include "items.h"

namespace igfast::IGFAST_ISA {

// Adds `weight * grads` to `acc`. Returns 0, or NaN if `grads` has a NaN or an infinity. The check costs one
// multiply-add and no second pass, because 0 * g is 0 for every finite g.
template <typename T>
Math<T> add_weighted(Math<T>* __restrict acc, const T* __restrict grads, int64_t n, Math<T> weight) {
  Vector<T> poisons{};
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    const Vector<T> g = load_contiguous(grads + i);
    poisons += g * 0;
    store_contiguous(acc + i, load_contiguous(acc + i) + g * weight);
  }
  auto poison = sum_of_lanes<Math<T>>(poisons);
  for (; i < n; ++i) {
    const Math<T> g = load(grads[i]);
    poison += g * 0;
    acc[i] += g * weight;
  }
  return poison;
}

template <typename T>
void accumulate_items(const AccumulateArgs& args, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    const Item item(args.n_features, index);
    const int64_t part = item.row;
    const int64_t first = part * args.n_examples / args.n_parts, last = (part + 1) * args.n_examples / args.n_parts;
    for (int64_t r = 0; r < args.n_rows; ++r) {
      const int64_t example = args.example[r];
      if (example < first || example >= last) continue;
      const auto weight = static_cast<Math<T>>(args.weight[r]);
      const auto poison = add_weighted(item.of<Math<T>>(args.acc, example), item.of<T>(args.grads, r), item.n, weight);
      // Several threads may find the same row not finite; all of them write the same byte.
      if (args.finite != nullptr && poison != 0) __atomic_store_n(&args.finite[r], uint8_t{0}, __ATOMIC_RELAXED);
    }
  }
}

inline void accumulate(const AccumulateArgs& args, int64_t begin, int64_t end) {
  IGFAST_FOR_DTYPE(accumulate_items, args, begin, end)
}

}  // namespace igfast::IGFAST_ISA
