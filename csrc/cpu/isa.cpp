#include <cstdlib>
#include <string_view>

#include "../kernels.h"

namespace igfast {

Isa cpu_isa() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  static const Isa isa = [] {
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512cd");
    // For tests and bug reports, the environment may choose a narrower instruction set.
    const char* wanted = std::getenv("IGFAST_CPU_ISA");
    const std::string_view limit = wanted == nullptr ? "" : wanted;
    if (limit == "baseline" || (limit == "avx2" && !avx2)) return Isa::kBaseline;
    if (limit == "avx2") return Isa::kAvx2;
    return avx512 ? Isa::kAvx512 : avx2 ? Isa::kAvx2 : Isa::kBaseline;
  }();
  return isa;
#else
  return Isa::kBaseline;
#endif
}

}  // namespace igfast
