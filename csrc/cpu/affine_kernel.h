// x * scale + shift in place, with a scale and a shift for each channel.
#include "vector.h"

namespace igfast::IGFAST_ISA {

// a * b + c, rounded once.
IGFAST_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
IGFAST_INLINE double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#if IGFAST_VECTOR_BYTES == 64
IGFAST_INLINE FloatVector fused(FloatVector a, FloatVector b, FloatVector c) { return _mm512_fmadd_ps(a, b, c); }
IGFAST_INLINE DoubleVector fused(DoubleVector a, DoubleVector b, DoubleVector c) { return _mm512_fmadd_pd(a, b, c); }
#elif IGFAST_VECTOR_BYTES == 32
IGFAST_INLINE FloatVector fused(FloatVector a, FloatVector b, FloatVector c) { return _mm256_fmadd_ps(a, b, c); }
IGFAST_INLINE DoubleVector fused(DoubleVector a, DoubleVector b, DoubleVector c) { return _mm256_fmadd_pd(a, b, c); }
#else
template <typename V>
IGFAST_INLINE V fused(V a, V b, V c) {
  for (size_t lane = 0; lane < sizeof(V) / sizeof(a[0]); ++lane) a[lane] = fused(a[lane], b[lane], c[lane]);
  return a;
}
#endif

// a * b + c, rounded after the product too: what stands between the two keeps the compiler from fusing them.
template <typename V>
IGFAST_INLINE V separate(V a, V b, V c) {
  V product = a * b;
#if defined(__x86_64__)
  __asm__("" : "+v"(product));
#elif defined(__aarch64__)
  __asm__("" : "+w"(product));
#endif
  return product + c;
}

template <bool kFused, typename V>
IGFAST_INLINE V affine_of(V x, V scale, V shift) {
  return kFused ? fused(x, scale, shift) : separate(x, scale, shift);
}

// `n` elements, with a scale and a shift each (kStep = 1) or one for all (kStep = 0).
template <typename T, bool kFused, int kStep>
IGFAST_INLINE void affine_stretch(T* x, const T* scale, const T* shift, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) {
    const auto a = load_vector(scale + kStep * i, kStep), b = load_vector(shift + kStep * i, kStep);
    store_contiguous(x + i, affine_of<kFused>(load_contiguous(x + i), a, b));
  }
  for (; i < n; ++i) x[i] = affine_of<kFused>(x[i], scale[kStep * i], shift[kStep * i]);
}

template <typename T, bool kFused>
void affine_items(const AffineArgs& args, int64_t begin, int64_t end) {
  const auto* scale = static_cast<const T*>(args.scale);
  const auto* shift = static_cast<const T*>(args.shift);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item * args.item_size, left = args.n_elements - first;
    const int64_t n = left < args.item_size ? left : args.item_size;
    T* x = static_cast<T*>(args.x) + first;
    if (args.channels_last) {
      affine_stretch<T, kFused, 1>(x, scale, shift, n);
    } else {
      const int64_t channel = item % args.n_channels;
      affine_stretch<T, kFused, 0>(x, scale + channel, shift + channel, n);
    }
  }
}

template <typename T>
void affine_of_dtype(const AffineArgs& args, int64_t begin, int64_t end) {
  if (args.is_fused) {
    affine_items<T, true>(args, begin, end);
  } else {
    affine_items<T, false>(args, begin, end);
  }
}

inline void affine(const AffineArgs& args, int64_t begin, int64_t end) {
  IGFAST_FOR_WIDE_DTYPE(affine_of_dtype, args, begin, end);
}

}  // namespace igfast::IGFAST_ISA
