#pragma once

#include <cstdint>
#include <cstring>

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

struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline unsigned __hgt2_mask(__nv_bfloat162 a, __nv_bfloat162 b) {
  return (__bfloat162float(a.x) > __bfloat162float(b.x) ? 0xffffu : 0) |
         (__bfloat162float(a.y) > __bfloat162float(b.y) ? 0xffff0000u : 0);
}
inline unsigned __hneu2_mask(__nv_bfloat162 a, __nv_bfloat162 b) {
  return (__bfloat162float(a.x) == __bfloat162float(b.x) ? 0 : 0xffffu) |
         (__bfloat162float(a.y) == __bfloat162float(b.y) ? 0 : 0xffff0000u);
}
