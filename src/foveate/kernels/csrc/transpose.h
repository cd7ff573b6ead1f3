// Rows and columns of a square of vectors, swapped.
#pragma once

#include <utility>

#include "vec.h"

namespace foveate {

template <class V, size_t... i>
inline V interleave(V a, V b, std::index_sequence<i...>) {
  constexpr int lanes = sizeof...(i);
  return __builtin_shufflevector(a, b, (i % 2 ? lanes + int(i) / 2 : int(i) / 2)...);
}

template <class V, size_t... i>
inline V interleave_high(V a, V b, std::index_sequence<i...>) {
  constexpr int lanes = sizeof...(i);
  return __builtin_shufflevector(a, b, ((i % 2 ? lanes : 0) + lanes / 2 + int(i) / 2)...);
}

// Swaps the rows and columns of as many vectors as one has lanes.
template <class A>
inline void transpose(Vec<A>* v) {
  constexpr Index lanes = kLanes<A>;
  const auto order = std::make_index_sequence<lanes>{};
  Vec<A> next[lanes];
  for (Index round = lanes; round > 1; round /= 2) {
    for (Index i = 0; i < lanes / 2; ++i) {
      next[2 * i] = interleave(v[i], v[i + lanes / 2], order);
      next[2 * i + 1] = interleave_high(v[i], v[i + lanes / 2], order);
    }
    for (Index i = 0; i < lanes; ++i) v[i] = next[i];
  }
}

}  // namespace foveate
