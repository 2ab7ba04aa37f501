#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "pair.h"

struct __half {
  uint16_t bits;  // 1 sign, 5 exponent, 10 mantissa
};
inline float __half2float(__half h) {
  const int exponent = h.bits >> 10 & 31, mantissa = h.bits & 1023;
  const float sign = h.bits >> 15 != 0 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  return sign * std::ldexp(static_cast<float>(exponent == 0 ? mantissa : mantissa + 1024), std::max(exponent, 1) - 25);
}
// To the nearest, ties to even, as std::nearbyint rounds.
inline __half __float2half_rn(float f) {
  const uint16_t sign = std::signbit(f) ? 0x8000 : 0;
  if (std::isnan(f)) return {0x7fff};
  int exponent = 0;
  std::frexp(f, &exponent);
  const int unit = f == 0 ? -24 : std::max(exponent - 11, -24);  // of the last place
  const auto steps = static_cast<uint32_t>(std::isinf(f) ? 0 : std::nearbyint(std::ldexp(std::fabs(f), -unit)));
  if (std::isinf(f) || std::ldexp(static_cast<float>(steps), unit) > 65504.0f)
    return {static_cast<uint16_t>(sign | 0x7c00)};
  // A number of the form 1024 + mantissa carries into the exponent by itself.
  const uint32_t biased = unit == -24 ? steps : steps + (static_cast<uint32_t>(unit + 24) << 10);
  return {static_cast<uint16_t>(sign | biased)};
}

using __half2 = Pair<__half, __half2float>;
inline __half2 __hadd2(__half2 a, __half2 b) {
  return {__float2half_rn(__half2float(a.x) + __half2float(b.x)),
          __float2half_rn(__half2float(a.y) + __half2float(b.y))};
}
