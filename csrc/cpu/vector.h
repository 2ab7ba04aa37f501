// Vectors of IGFAST_VECTOR_BYTES in the compiler's vector extension, so that one source serves every instruction set.
// The auto-vectoriser did not vectorise the half conversions, and halved the speed of the sums. for_each_isa.h includes
// this file once per instruction set, hence no include guard.
//
// Arithmetic is done in `Math<T>`: float for half, bfloat16 and float, double for double.

#define IGFAST_INLINE inline __attribute__((always_inline))

namespace igfast::IGFAST_ISA {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

template <typename T>
struct MathType {
  using type = float;
};
template <>
struct MathType<double> {
  using type = double;
};
template <typename T>
using Math = typename MathType<T>::type;

typedef float FloatVector __attribute__((vector_size(IGFAST_VECTOR_BYTES)));
typedef double DoubleVector __attribute__((vector_size(IGFAST_VECTOR_BYTES)));
typedef uint32_t UIntVector __attribute__((vector_size(IGFAST_VECTOR_BYTES)));
typedef uint64_t ULongVector __attribute__((vector_size(IGFAST_VECTOR_BYTES)));
typedef uint16_t UShortVector __attribute__((vector_size(IGFAST_VECTOR_BYTES / 2)));
typedef uint8_t UByteVector __attribute__((vector_size(IGFAST_VECTOR_BYTES / 4)));
typedef uint8_t HalfUByteVector __attribute__((vector_size(IGFAST_VECTOR_BYTES / 8)));

template <typename M>
struct VectorType {
  using type = FloatVector;
};
template <>
struct VectorType<double> {
  using type = DoubleVector;
};
template <typename T>
using Vector = typename VectorType<Math<T>>::type;

// Elements of T in one vector.
template <typename T>
constexpr int64_t kLanes = static_cast<int64_t>(IGFAST_VECTOR_BYTES / sizeof(Math<T>));

// One lane's unsigned integer, as wide as Math<T>, and vectors of those and of bytes.
template <typename M>
struct WordTypes {
  using word = uint32_t;
  using vector = UIntVector;
  using bytes = UByteVector;
};
template <>
struct WordTypes<double> {
  using word = uint64_t;
  using vector = ULongVector;
  using bytes = HalfUByteVector;
};
template <typename T>
using Word = typename WordTypes<Math<T>>::word;
template <typename T>
using WordVector = typename WordTypes<Math<T>>::vector;
template <typename T>
using ByteVector = typename WordTypes<Math<T>>::bytes;

template <typename To, typename From>
IGFAST_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// The conversions below serve one lane (U = uint32_t, F = float) and a vector, whose `?:` chooses by lane. The
// arithmetic is on integers, because C++ has _Float16 only from g++ 13.

// Normal numbers are shifted into place, and their exponent is rebased (float bias 127 less half bias 15). Subnormal
// numbers count units of 2^-24, the last bit of 0.5f: the units are written there, and 0.5 is subtracted. No subnormal
// float is multiplied. x86 is slow at that, some modes flush to zero, and half gradients are often subnormal.
template <typename U, typename F>
IGFAST_INLINE F half_to_float(U bits) {
  const U units = bits & 0x7fffu;
  const U normal = (units << 13) + 0x38000000u;
  const U subnormal = bit_cast<U>(bit_cast<F>(units | 0x3f000000u) - 0.5f);
  const U special = (units << 13) | 0x7f800000u;
  const U finite = units < 0x0400u ? subnormal : normal;
  return bit_cast<F>(((bits & 0x8000u) << 16) | (units >= 0x7c00u ? special : finite));
}

// Rounds to nearest, ties to even. An integer addition at half's last bit rounds normal numbers. Below 2^-14, adding
// 0.5 makes the float adder round at 2^-24, half's subnormal spacing. 65520 and up become infinity.
template <typename U, typename F>
IGFAST_INLINE U float_to_half(F value) {
  const U bits = bit_cast<U>(value);
  const U magnitude = bits & 0x7fffffffu;
  const U normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const U subnormal = bit_cast<U>(bit_cast<F>(magnitude) + 0.5f) - 0x3f000000u;
  const U finite = magnitude < 0x38800000u ? subnormal : normal;
  const U special = magnitude > 0x7f800000u ? (magnitude & 0u) + 0x7e00u : (magnitude & 0u) + 0x7c00u;
  return ((bits >> 16) & 0x8000u) | (magnitude >= 0x477ff000u ? special : finite);
}

template <typename U, typename F>
IGFAST_INLINE F bfloat16_to_float(U bits) {
  return bit_cast<F>(bits << 16);
}

// Rounds to nearest, ties to even. Every NaN becomes the quiet NaN.
template <typename U, typename F>
IGFAST_INLINE U float_to_bfloat16(F value) {
  const U bits = bit_cast<U>(value);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (bits & 0x7fffffffu) > 0x7f800000u ? (bits & 0u) + 0x7fc0u : rounded;
}

// ---------------------------------------------------------------------------------------------- one lane

IGFAST_INLINE float load(float value) { return value; }
IGFAST_INLINE double load(double value) { return value; }
IGFAST_INLINE float load(Half value) { return half_to_float<uint32_t, float>(value.bits); }
IGFAST_INLINE float load(BFloat16 value) { return bfloat16_to_float<uint32_t, float>(value.bits); }

IGFAST_INLINE void store(float* to, float value) { *to = value; }
IGFAST_INLINE void store(double* to, double value) { *to = value; }
IGFAST_INLINE void store(Half* to, float value) {
  to->bits = static_cast<uint16_t>(float_to_half<uint32_t, float>(value));
}
IGFAST_INLINE void store(BFloat16* to, float value) {
  to->bits = static_cast<uint16_t>(float_to_bfloat16<uint32_t, float>(value));
}

// ---------------------------------------------------------------------------------------------- a vector of lanes

IGFAST_INLINE FloatVector load_contiguous(const float* from) {
  FloatVector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
IGFAST_INLINE DoubleVector load_contiguous(const double* from) {
  DoubleVector v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
IGFAST_INLINE UIntVector load_bits(const void* from) {
  UShortVector v;
  std::memcpy(&v, from, sizeof(v));
  return __builtin_convertvector(v, UIntVector);
}
IGFAST_INLINE FloatVector load_contiguous(const BFloat16* from) {
  return bfloat16_to_float<UIntVector, FloatVector>(load_bits(from));
}

IGFAST_INLINE void store_contiguous(float* to, FloatVector v) { std::memcpy(to, &v, sizeof(v)); }
IGFAST_INLINE void store_contiguous(double* to, DoubleVector v) { std::memcpy(to, &v, sizeof(v)); }
IGFAST_INLINE void store_bits(void* to, UIntVector bits) {
  const auto v = __builtin_convertvector(bits, UShortVector);
  std::memcpy(to, &v, sizeof(v));
}
IGFAST_INLINE void store_contiguous(BFloat16* to, FloatVector v) {
  store_bits(to, float_to_bfloat16<UIntVector, FloatVector>(v));
}

// The machine's half conversions, where the instruction set has them, are three times faster than those above.
#if IGFAST_VECTOR_BYTES == 64
IGFAST_INLINE FloatVector load_contiguous(const Half* from) {
  return bit_cast<FloatVector>(
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
IGFAST_INLINE void store_contiguous(Half* to, FloatVector v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_maskz_cvtps_ph(0xffff, bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif IGFAST_VECTOR_BYTES == 32
IGFAST_INLINE FloatVector load_contiguous(const Half* from) {
  return bit_cast<FloatVector>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
IGFAST_INLINE void store_contiguous(Half* to, FloatVector v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#else
IGFAST_INLINE FloatVector load_contiguous(const Half* from) {
  return half_to_float<UIntVector, FloatVector>(load_bits(from));
}
IGFAST_INLINE void store_contiguous(Half* to, FloatVector v) {
  store_bits(to, float_to_half<UIntVector, FloatVector>(v));
}
#endif

template <typename T>
IGFAST_INLINE WordVector<T> load_bytes(const uint8_t* from) {
  ByteVector<T> bytes;
  std::memcpy(&bytes, from, sizeof(bytes));
  return __builtin_convertvector(bytes, WordVector<T>);
}
template <typename T>
IGFAST_INLINE void store_bytes(uint8_t* to, WordVector<T> words) {
  const auto bytes = __builtin_convertvector(words, ByteVector<T>);
  std::memcpy(to, &bytes, sizeof(bytes));
}

template <typename M, typename V>
IGFAST_INLINE M sum_of_lanes(V v) {
  M sum = 0;
  for (size_t lane = 0; lane < sizeof(V) / sizeof(v[0]); ++lane) sum += v[lane];
  return sum;
}

// Calls KERNEL<T>(args, begin, end) for the T that args.dtype names.
#define IGFAST_FOR_DTYPE(KERNEL, args, begin, end)                    \
  switch (args.dtype) {                                               \
    case DType::kHalf: return KERNEL<Half>(args, begin, end);         \
    case DType::kBFloat16: return KERNEL<BFloat16>(args, begin, end); \
    case DType::kFloat: return KERNEL<float>(args, begin, end);       \
    case DType::kDouble: return KERNEL<double>(args, begin, end);     \
  }

}  // namespace igfast::IGFAST_ISA
