// Two neighbouring elements of 16 bits, and comparisons whose result is a mask of each.
#pragma once

template <typename T, float (*as_float)(T)>
struct Pair {
  T x, y;
};

template <typename T, float (*as_float)(T)>
unsigned __hgt2_mask(Pair<T, as_float> a, Pair<T, as_float> b) {
  return (as_float(a.x) > as_float(b.x) ? 0xffffu : 0) | (as_float(a.y) > as_float(b.y) ? 0xffff0000u : 0);
}

template <typename T, float (*as_float)(T)>
unsigned __hneu2_mask(Pair<T, as_float> a, Pair<T, as_float> b) {
  return (as_float(a.x) == as_float(b.x) ? 0 : 0xffffu) | (as_float(a.y) == as_float(b.y) ? 0 : 0xffff0000u);
}
