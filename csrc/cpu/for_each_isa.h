// Compiles IGFAST_KERNEL (a header without include guard) once per instruction set, each in its own namespace. So one
// portable binary runs wide instructions where the machine has them.
//
// The target is set around the whole header because vector code is lowered function by function, before inlining.
// target_clones on the outer function alone leaves 16-byte instructions inside (measured: 3 to 50 times slower).

// What the kernels include must stay outside of their namespaces and targets.
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define IGFAST_MULTIPLE_ISA 1
#else
#define IGFAST_MULTIPLE_ISA 0  // the compiler's baseline alone (on aarch64 that includes its vector unit)
#endif

#define IGFAST_ISA isa_baseline
#define IGFAST_VECTOR_BYTES 16
#include IGFAST_KERNEL
#undef IGFAST_ISA
#undef IGFAST_VECTOR_BYTES

#if IGFAST_MULTIPLE_ISA

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define IGFAST_ISA isa_avx2
#define IGFAST_VECTOR_BYTES 32
#include IGFAST_KERNEL
#undef IGFAST_ISA
#undef IGFAST_VECTOR_BYTES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c")
#define IGFAST_ISA isa_avx512
#define IGFAST_VECTOR_BYTES 64
#include IGFAST_KERNEL
#undef IGFAST_ISA
#undef IGFAST_VECTOR_BYTES
#pragma GCC pop_options

#endif

// Calls FUNCTION as compiled for the instruction set of cpu_isa().
#if IGFAST_MULTIPLE_ISA
#define IGFAST_DISPATCH(FUNCTION, ...)                                               \
  switch (::igfast::cpu_isa()) {                                                     \
    case ::igfast::Isa::kAvx512: return ::igfast::isa_avx512::FUNCTION(__VA_ARGS__); \
    case ::igfast::Isa::kAvx2: return ::igfast::isa_avx2::FUNCTION(__VA_ARGS__);     \
    case ::igfast::Isa::kBaseline: break;                                            \
  }                                                                                  \
  return ::igfast::isa_baseline::FUNCTION(__VA_ARGS__)
#else
#define IGFAST_DISPATCH(FUNCTION, ...) return ::igfast::isa_baseline::FUNCTION(__VA_ARGS__)
#endif
