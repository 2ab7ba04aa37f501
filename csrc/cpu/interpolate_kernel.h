// Path points: out[r] = b + alpha (x - b). The baseline and the difference of a tile are brought to the precision that
// points are computed in once, and all rows of an example are written from there.
#include "items.h"

namespace igfast::IGFAST_ISA {

// What points are computed in: float64 for float32, so that a point is the correctly rounded one. In float32 it is off
// by up to two units in the last place, and the attribution of a network with ReLU kinks by 10 to 20 % more
// (EfficientNet-Lite0, error against float64).
template <typename T>
struct PointMath {
  using Scalar = Math<T>;
  using Lanes = Vector<T>;
  static IGFAST_INLINE Lanes load_lanes(const T* from, int64_t stride) { return load_vector(from, stride); }
  static IGFAST_INLINE void store_lanes(T* to, int64_t stride, Lanes v) { store_vector(to, stride, v); }
};

template <>
struct PointMath<float> {
  using Scalar = double;
  using Lanes = DoubleVector;
  static IGFAST_INLINE Lanes load_lanes(const float* from, int64_t stride) {
    if (stride == 0) return Lanes{} + static_cast<double>(*from);
    HalfFloatVector narrow;
    if (stride == 1) {
      std::memcpy(&narrow, from, sizeof(narrow));
    } else {
      float lanes[kLanes<double>];
      for (int64_t lane = 0; lane < kLanes<double>; ++lane) lanes[lane] = from[lane * stride];
      std::memcpy(&narrow, lanes, sizeof(narrow));
    }
    return widen(narrow);
  }
  static IGFAST_INLINE void store_lanes(float* to, int64_t stride, Lanes v) {
    const HalfFloatVector narrow = narrowed(v);
    if (stride == 1) {
      std::memcpy(to, &narrow, sizeof(narrow));
    } else {
      float lanes[kLanes<double>];
      std::memcpy(lanes, &narrow, sizeof(narrow));
      for (int64_t lane = 0; lane < kLanes<double>; ++lane) to[lane * stride] = lanes[lane];
    }
  }
};

template <typename T>
using PointScalar = typename PointMath<T>::Scalar;

// A stretch of the path between two ends, contiguous: 16 KB at most, which stays in the first-level cache.
template <typename T>
struct Stretch {
  alignas(64) PointScalar<T> baseline[kTile];
  alignas(64) PointScalar<T> difference[kTile];
};

template <typename T>
constexpr int64_t kPointLanes = static_cast<int64_t>(sizeof(typename PointMath<T>::Lanes) / sizeof(PointScalar<T>));

template <typename T>
IGFAST_INLINE void stage_strided(Stretch<T>& stretch, const T* x, int64_t x_stride, const T* b, int64_t b_stride,
                                 int64_t n) {
  int64_t i = 0;
  for (; i + kPointLanes<T> <= n; i += kPointLanes<T>) {
    const auto baseline = PointMath<T>::load_lanes(b + i * b_stride, b_stride);
    const auto difference = PointMath<T>::load_lanes(x + i * x_stride, x_stride) - baseline;
    std::memcpy(&stretch.baseline[i], &baseline, sizeof(baseline));
    std::memcpy(&stretch.difference[i], &difference, sizeof(difference));
  }
  for (; i < n; ++i) {
    stretch.baseline[i] = load(b[i * b_stride]);
    stretch.difference[i] = static_cast<PointScalar<T>>(load(x[i * x_stride])) - stretch.baseline[i];
  }
}

// Literal strides for what is common: all contiguous, with a baseline tensor or a single number.
template <typename T>
IGFAST_INLINE void stage(Stretch<T>& stretch, const T* x, int64_t sx, const T* b, int64_t sb, int64_t n) {
  if (sx == 1 && sb == 1) return stage_strided(stretch, x, 1, b, 1, n);
  if (sx == 1 && sb == 0) return stage_strided(stretch, x, 1, b, 0, n);
  stage_strided(stretch, x, sx, b, sb, n);
}

template <typename T>
IGFAST_INLINE void write_strided(T* __restrict out, int64_t stride, const Stretch<T>& stretch, int64_t n,
                                 PointScalar<T> alpha) {
  using Lanes = typename PointMath<T>::Lanes;
  int64_t i = 0;
  for (; i + kPointLanes<T> <= n; i += kPointLanes<T>) {
    Lanes baseline, difference;
    std::memcpy(&baseline, &stretch.baseline[i], sizeof(baseline));
    std::memcpy(&difference, &stretch.difference[i], sizeof(difference));
    PointMath<T>::store_lanes(out + i * stride, stride, baseline + alpha * difference);
  }
  for (; i < n; ++i) {
    store(&out[i * stride], static_cast<Math<T>>(stretch.baseline[i] + alpha * stretch.difference[i]));
  }
}

template <typename T>
IGFAST_INLINE void write(T* out, int64_t stride, const Stretch<T>& stretch, int64_t n, double alpha) {
  const auto a = static_cast<PointScalar<T>>(alpha);
  if (stride == 1) return write_strided(out, 1, stretch, n, a);
  if (stride == 3) return write_strided(out, 3, stretch, n, a);  // a 3-channel image, channels-last
  write_strided(out, stride, stretch, n, a);
}

// At alpha 0 and 1 the point is the end itself, without rounding and whatever the other end holds (0 * inf is NaN).
template <typename T>
IGFAST_INLINE void copy(T* __restrict out, int64_t out_stride, const T* from, int64_t from_stride, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i * out_stride] = from[i * from_stride];
}

template <typename T>
void interpolate_items(const InterpolateArgs& args, int64_t begin, int64_t end) {
  const Features& f = args.features;
  const int32_t inner = f.n_dims - 1;
  const int32_t middle = f.n_dims - 2;
  const int64_t so = args.out.strides[inner];
  const int64_t sx = args.x.strides[inner];
  const int64_t sb = args.baseline.strides[inner];
  Stretch<T> stretch;
  for (int64_t index = begin; index < end; ++index) {
    const Item item(f, index);
    const int64_t example = args.rows.example[item.group];
    for (int64_t m = 0; m < f.sizes[middle]; ++m) {
      const T* x = at<const T>(args.x, item.offset(f, args.x, example) + m * args.x.strides[middle]);
      const T* b =
          at<const T>(args.baseline, item.offset(f, args.baseline, example) + m * args.baseline.strides[middle]);
      stage(stretch, x, sx, b, sb, item.inner_size);
      for (int64_t i = args.rows.begin[item.group]; i < args.rows.begin[item.group + 1]; ++i) {
        const int64_t r = args.rows.row[i];
        T* out = at<T>(args.out, item.offset(f, args.out, r) + m * args.out.strides[middle]);
        const double alpha = args.alpha[r];
        if (alpha == 0.0) {
          copy(out, so, b, sb, item.inner_size);
        } else if (alpha == 1.0) {
          copy(out, so, x, sx, item.inner_size);
        } else {
          write(out, so, stretch, item.inner_size, alpha);
        }
      }
    }
  }
}

inline void interpolate(const InterpolateArgs& args, int64_t begin, int64_t end) {
  IGFAST_FOR_DTYPE(interpolate_items, args, begin, end)
}

}  // namespace igfast::IGFAST_ISA
