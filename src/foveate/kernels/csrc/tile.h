// Small dense matrices, copied from and to tensors of any strides, and their products.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include "transpose.h"

namespace foveate {

// A matrix inside a tensor: element (i, j) lies at p[i * row + j * column].
template <class T>
struct Strided {
  T* p;
  Index row, column;
  Strided from(Index i) const { return {p + i * row, row, column}; }
};

template <class A>
inline Index padded(Index n) {
  return (n + kLanes<A> - 1) / kLanes<A> * kLanes<A>;
}

// Copies a matrix, times a factor, into rows of `stride` values, with zeros behind each row up to
// a whole vector.
template <class T, class A = Acc<std::remove_const_t<T>>>
inline void load_tile(A* to, Index stride, Strided<T> from, Index rows, Index columns, A factor) {
  constexpr Index lanes = kLanes<A>;
  const Index whole = columns / lanes * lanes;
  const auto scalars = [&](Index first, Index last, Index column) {
    for (Index i = first; i < last; ++i)
      for (Index j = column; j < padded<A>(columns); ++j)
        to[i * stride + j] =
            j < columns ? value(from.p + i * from.row + j * from.column) * factor : 0;
  };
  if (from.column == 1) {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < whole; j += lanes)
        narrow(to + i * stride + j, widen(from.p + i * from.row + j) * factor);
    if (whole < columns) scalars(0, rows, whole);
  } else if (from.row == 1) {
    const Index high = rows / lanes * lanes;
    for (Index i = 0; i < high; i += lanes)
      for (Index j = 0; j < whole; j += lanes) {
        Vec<A> v[lanes];
        for (Index l = 0; l < lanes; ++l) v[l] = widen(from.p + i + (j + l) * from.column) * factor;
        transpose<A>(v);
        for (Index l = 0; l < lanes; ++l) narrow(to + (i + l) * stride + j, v[l]);
      }
    if (whole < columns) scalars(0, high, whole);
    scalars(high, rows, 0);
  } else {
    scalars(0, rows, 0);
  }
}

// The way back: writes rows of `stride` values, or adds them to what is there.
template <bool kAdd, class T, class A = Acc<T>>
inline void store_tile(Strided<T> to, const A* from, Index stride, Index rows, Index columns) {
  constexpr Index lanes = kLanes<A>;
  const Index whole = columns / lanes * lanes;
  const auto put = [](T* p, Vec<A> v) {
    if constexpr (kAdd) v += widen(p);
    narrow(p, v);
  };
  const auto scalars = [&](Index first, Index last, Index column) {
    for (Index i = first; i < last; ++i)
      for (Index j = column; j < columns; ++j) {
        T* p = to.p + i * to.row + j * to.column;
        Vec<A> v = splat(from[i * stride + j]);
        if constexpr (kAdd) v += value(p);
        store(p, v, Slice<A>{0, 0, 1});
      }
  };
  if (to.column == 1) {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < whole; j += lanes)
        put(to.p + i * to.row + j, widen(from + i * stride + j));
    if (whole < columns) scalars(0, rows, whole);
  } else if (to.row == 1) {
    const Index high = rows / lanes * lanes;
    for (Index i = 0; i < high; i += lanes)
      for (Index j = 0; j < whole; j += lanes) {
        Vec<A> v[lanes];
        for (Index l = 0; l < lanes; ++l) v[l] = widen(from + (i + l) * stride + j);
        transpose<A>(v);
        for (Index l = 0; l < lanes; ++l) put(to.p + i + (j + l) * to.column, v[l]);
      }
    if (whole < columns) scalars(0, high, whole);
    scalars(high, rows, 0);
  } else {
    scalars(0, rows, 0);
  }
}

// Rows and vectors of the product that is held in registers.
#ifdef __AVX512F__
constexpr int kProductRows = 8, kProductVectors = 3;
#else
constexpr int kProductRows = 4, kProductVectors = 1;
#endif

template <int kRows, int kVectors, class A>
inline void product_block(Index depth, Strided<const A> a, const A* b, Index b_stride, A* c,
                          Index c_stride, bool add) {
  Vec<A> sums[kRows][kVectors] = {};
  for (Index k = 0; k < depth; ++k) {
    Vec<A> right[kVectors];
    for (int j = 0; j < kVectors; ++j) right[j] = widen(b + k * b_stride + j * kLanes<A>);
    for (int i = 0; i < kRows; ++i) {
      const Vec<A> left = splat(a.p[i * a.row + k * a.column]);
      for (int j = 0; j < kVectors; ++j) sums[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) {
      A* p = c + i * c_stride + j * kLanes<A>;
      narrow(p, add ? widen(p) + sums[i][j] : sums[i][j]);
    }
}

template <int kRows, int kVectors, class A>
inline void product_rows(Index rows, Index depth, Strided<const A> a, const A* b, Index b_stride,
                         A* c, Index c_stride, bool add) {
  Index i = 0;
  for (; i + kRows <= rows; i += kRows)
    product_block<kRows, kVectors>(depth, a.from(i), b, b_stride, c + i * c_stride, c_stride, add);
  if constexpr (kRows > 1)
    if (i < rows)
      product_rows<kRows / 2, kVectors>(rows - i, depth, a.from(i), b, b_stride, c + i * c_stride,
                                        c_stride, add);
}

// C (rows x columns) = or += A (rows x depth) B (depth x columns). The rows of B and C have whole
// vectors.
template <class A>
inline void product(Index rows, Index columns, Index depth, Strided<const A> a, const A* b,
                    Index b_stride, A* c, Index c_stride, bool add) {
  constexpr Index lanes = kLanes<A>, wide = kProductVectors * lanes, kDepth = 256;
  for (Index k = 0; k == 0 || k < depth; k += kDepth, add = true) {
    const Index deep = std::min(kDepth, depth - k);
    const Strided<const A> left{a.p + k * a.column, a.row, a.column};
    const A* right = b + k * b_stride;
    Index j = 0;
    for (; j + wide <= columns; j += wide)
      product_rows<kProductRows, kProductVectors>(rows, deep, left, right + j, b_stride, c + j,
                                                  c_stride, add);
    for (; j < columns; j += lanes)
      product_rows<kProductRows, 1>(rows, deep, left, right + j, b_stride, c + j, c_stride, add);
  }
}

// The exponential function, for arguments that are not far above 0.
inline Vec<float> exponential(Vec<float> x) {
  const Vec<float> bounded = x > -87.0f ? x : splat(-87.0f);
  const Vec<float> shift = splat(12582912.0f);  // 1.5 * 2^23: rounds to whole numbers
  const Vec<float> shifted = bounded * 1.44269504f + shift;
  const Vec<float> n = shifted - shift;
  const Vec<float> r = bounded - n * 0.693359375f - n * -2.12194440e-4f;
  Vec<float> y = splat(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                        5.0000001201e-1f, 1.0f, 1.0f})
    y = y * r + c;
  auto exponent = __builtin_convertvector(n, Vec<int32_t>) + 127;
  exponent <<= 23;
  Vec<float> power;
  std::memcpy(&power, &exponent, sizeof power);
  y = x >= -87.0f ? y * power : splat(0.0f);
  return x == x ? y : x;
}

inline Vec<double> exponential(Vec<double> x) {
  for (Index i = 0; i < kLanes<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

}  // namespace foveate
