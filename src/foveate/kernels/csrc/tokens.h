// Tokens (B, heads, N, D) of any strides, and what softmax attention does with rows of scores.
#pragma once

#include <limits>

#include "common.h"
#include "tile.h"

namespace foveate {

template <class A>
constexpr A kInfinite = std::numeric_limits<A>::infinity();

template <class T>
struct Tokens {
  T* p;
  Index batches, per_batch, count, dim;
  Index batch_stride, head_stride, token_stride, dim_stride;

  Index heads() const { return batches * per_batch; }
  T* at(Index head, Index token) const {
    return p + head / per_batch * batch_stride + head % per_batch * head_stride +
           token * token_stride;
  }
  // Tokens from `first` on, one a row; or one a column.
  Strided<T> rows(Index head, Index first) const {
    return {at(head, first), token_stride, dim_stride};
  }
  Strided<T> columns(Index head, Index first) const {
    return {at(head, first), dim_stride, token_stride};
  }
};

template <class T>
inline Tokens<T> tokens(const Tensor& t) {
  T* p;
  if constexpr (std::is_const_v<T>) p = in<std::remove_const_t<T>>(t);
  else p = out<T>(t);
  return {p,           t.size(0),   t.size(1),   t.size(2),  t.size(3),
          t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

// The largest score of a row of whole vectors that is a number; minus infinity if there is none.
template <class A>
inline A largest(const A* row, Index n) {
  Vec<A> peak = splat(-kInfinite<A>);
  for (Index j = 0; j < n; j += kLanes<A>) {
    const Vec<A> v = widen(row + j);
    peak = v > peak ? v : peak;
  }
  return fold<A>(peak, [](auto a, auto b) { return a > b ? a : b; });
}

// Scores to their exponentials above `base`; returns the sum of them.
template <class A>
inline A exponentials(A* row, Index n, A base) {
  Vec<A> total = {};
  for (Index j = 0; j < n; j += kLanes<A>) {
    const Vec<A> v = exponential(widen(row + j) - base);
    total += v;
    narrow(row + j, v);
  }
  return sum<A>(total);
}

template <class A>
inline void multiply(A* row, Index n, A factor) {
  for (Index j = 0; j < n; j += kLanes<A>) narrow(row + j, widen(row + j) * factor);
}

template <class A>
inline A dot(const A* left, const A* right, Index n) {
  Vec<A> total = {};
  for (Index j = 0; j < n; j += kLanes<A>) total += widen(left + j) * widen(right + j);
  return sum<A>(total);
}

// Scores to weights, and the slopes of the weights to those of the scores.
template <class A>
inline void slope(A* scores, A* slopes, Index n, A lse, A delta) {
  for (Index j = 0; j < n; j += kLanes<A>) {
    const Vec<A> weights = exponential(widen(scores + j) - lse);
    narrow(scores + j, weights);
    narrow(slopes + j, weights * (widen(slopes + j) - delta));
  }
}

}  // namespace foveate
