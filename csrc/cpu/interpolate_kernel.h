// Path points: out[r] = b + alpha (x - b), x and b read once per tile and all rows of an example written from there.
#include "items.h"

namespace igfast::IGFAST_ISA {

// One stretch of one row, written from the nearer end as torch.lerp does: x + (alpha - 1)(x - b) from one half on,
// b + alpha (x - b) below, so that both ends are met without rounding. `scale` is alpha - 1 or alpha.
template <bool kFromX, typename T>
IGFAST_INLINE void span(T* __restrict out, int64_t out_stride, const T* x, int64_t x_stride, const T* b,
                        int64_t b_stride, int64_t n, Math<T> scale) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    const Vector<T> x_lanes = load_vector(x + i * x_stride, x_stride);
    const Vector<T> b_lanes = load_vector(b + i * b_stride, b_stride);
    store_vector(out + i * out_stride, out_stride, (kFromX ? x_lanes : b_lanes) + scale * (x_lanes - b_lanes));
  }
  for (; i < n; ++i) {
    const Math<T> x_lane = load(x[i * x_stride]);
    const Math<T> b_lane = load(b[i * b_stride]);
    store(&out[i * out_stride], (kFromX ? x_lane : b_lane) + scale * (x_lane - b_lane));
  }
}

// At alpha 0 and 1 the point is the end itself, whatever the other end holds (0 * inf would be NaN).
template <typename T>
IGFAST_INLINE void copy(T* __restrict out, int64_t out_stride, const T* from, int64_t from_stride, int64_t n) {
  if (out_stride == 1 && from_stride == 1) {
    for (int64_t i = 0; i < n; ++i) out[i] = from[i];
  } else {
    for (int64_t i = 0; i < n; ++i) out[i * out_stride] = from[i * from_stride];
  }
}

// The layouts worth their own loop: everything contiguous, with a baseline tensor or a single number, and the 3-channel
// image written channels-last from a contiguous one. A constant stride folds the branches in load_vector away.
template <bool kFromX, typename T>
IGFAST_INLINE void row_from(T* out, int64_t so, const T* x, int64_t sx, const T* b, int64_t sb, int64_t n,
                            Math<T> scale) {
  if (so == 1 && sx == 1 && sb == 1) return span<kFromX>(out, 1, x, 1, b, 1, n, scale);
  if (so == 1 && sx == 1 && sb == 0) return span<kFromX>(out, 1, x, 1, b, 0, n, scale);
  if (so == 3 && sx == 1 && sb == 1) return span<kFromX>(out, 3, x, 1, b, 1, n, scale);
  span<kFromX>(out, so, x, sx, b, sb, n, scale);
}

template <typename T>
IGFAST_INLINE void row(T* out, int64_t so, const T* x, int64_t sx, const T* b, int64_t sb, int64_t n, double alpha) {
  if (alpha == 0.0) return copy(out, so, b, sb, n);
  if (alpha == 1.0) return copy(out, so, x, sx, n);
  if (alpha < 0.5) return row_from<false>(out, so, x, sx, b, sb, n, static_cast<Math<T>>(alpha));
  row_from<true>(out, so, x, sx, b, sb, n, static_cast<Math<T>>(alpha - 1.0));
}

template <typename T>
void interpolate_items(const InterpolateArgs& args, int64_t begin, int64_t end) {
  const Features& f = args.features;
  const int32_t inner = f.n_dims - 1;
  const int32_t middle = f.n_dims - 2;
  for (int64_t index = begin; index < end; ++index) {
    const Item item(f, index);
    const int64_t example = args.rows.example[item.group];
    const T* x = at<const T>(args.x, item.offset(f, args.x, example));
    const T* b = at<const T>(args.baseline, item.offset(f, args.baseline, example));
    for (int64_t i = args.rows.begin[item.group]; i < args.rows.begin[item.group + 1]; ++i) {
      const int64_t r = args.rows.row[i];
      T* out = at<T>(args.out, item.offset(f, args.out, r));
      for (int64_t m = 0; m < f.sizes[middle]; ++m) {
        row(out + m * args.out.strides[middle], args.out.strides[inner], x + m * args.x.strides[middle],
            args.x.strides[inner], b + m * args.baseline.strides[middle], args.baseline.strides[inner], item.inner_size,
            args.alpha[r]);
      }
    }
  }
}

inline void interpolate(const InterpolateArgs& args, int64_t begin, int64_t end) {
  IGFAST_FOR_DTYPE(interpolate_items, args, begin, end)
}

}  // namespace igfast::IGFAST_ISA
