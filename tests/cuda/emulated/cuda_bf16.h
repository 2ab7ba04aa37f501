#pragma once

#include <cstdint>
#include <cstring>

#include "pair.h"

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 b) {
  const uint32_t wide = static_cast<uint32_t>(b.bits) << 16;
  float f;
  memcpy(&f, &wide, sizeof(f));
  return f;
}
// To the nearest, ties to even; a NaN stays one.
inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t wide;
  memcpy(&wide, &f, sizeof(f));
  if (f != f) return {0x7fff};
  return {static_cast<uint16_t>((wide + 0x7fff + (wide >> 16 & 1)) >> 16)};
}

using __nv_bfloat162 = Pair<__nv_bfloat16, __bfloat162float>;
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {__float2bfloat16_rn(__bfloat162float(a.x) + __bfloat162float(b.x)),
          __float2bfloat16_rn(__bfloat162float(a.y) + __bfloat162float(b.y))};
}
