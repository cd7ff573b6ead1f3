// The logistic function of a vector.
#pragma once

#include "vec.h"

namespace foveate {

// exp by Cody and Waite's reduction and a polynomial of degree 6: 2 units in the last place.
inline Vec<float> exponential(Vec<float> x) {
  constexpr float log2e = 1.44269504f, high = 0.693359375f, low = -2.12194440e-4f;
  const auto nan = x != x;
  // Far outside, the result is 0 or infinite anyway; within, the power of two is a number.
  x = x < splat(-87.3f) ? splat(-87.3f) : x;
  x = x > splat(88.3f) ? splat(88.3f) : x;
  Vec<int32_t> power = __builtin_convertvector(x * log2e + (x < Vec<float>{} ? splat(-0.5f) : splat(0.5f)), Vec<int32_t>);
  const Vec<float> n = __builtin_convertvector(power, Vec<float>);
  const Vec<float> r = x - n * high - n * low;
  Vec<float> p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  power = (power + 127) << 23;
  Vec<float> scale;
  std::memcpy(&scale, &power, sizeof scale);
  return nan ? splat(__builtin_nanf("")) : p * scale;
}

inline Vec<double> exponential(Vec<double> x) {
  for (Index i = 0; i < kLanes<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// 1 / (1 + exp(-x)), which is 0 and 1 far outside.
template <class V>
inline V logistic(V x) {
  return 1 / (1 + exponential(-x));
}

}  // namespace foveate
