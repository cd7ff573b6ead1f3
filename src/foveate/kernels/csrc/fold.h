// Vectors folded to one value each, a whole vector of them at a time.
#pragma once

#include <utility>

#include "vec.h"

namespace foveate {

struct Add {
  template <class V>
  V operator()(V a, V b) const {
    return a + b;
  }
};

// One instruction, which may lose a NaN.
struct Larger {
  template <class V>
  V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};

struct Smaller {
  template <class V>
  V operator()(V a, V b) const {
    return a < b ? a : b;
  }
};

// Lanes of a, and of b moved by `distance`, that have the bit `distance` in their number or not.
template <Index distance, bool set, class V, Index... i>
inline V every_other(V a, V b, std::integer_sequence<Index, i...>) {
  constexpr Index lanes = sizeof...(i);
  constexpr auto from = [](Index lane) {
    const bool second = lane & distance;
    return second ? lanes + lane - (set ? 0 : distance) : lane + (set ? distance : 0);
  };
#ifdef __clang__
  return __builtin_shufflevector(a, b, from(i)...);
#else
  using Lane = std::conditional_t<lanes == 8, int64_t, int32_t>;
  return __builtin_shuffle(a, b, Vec<Lane>{Lane(from(i))...});
#endif
}

// Lane i of the result is vector i folded. The vectors are lost.
template <class A, Index distance = 1, class F>
inline Vec<A> fold_each(Vec<A>* v, const F& f) {
  constexpr Index lanes = kLanes<A>;
  constexpr auto all = std::make_integer_sequence<Index, lanes>{};
  for (Index i = 0; i < lanes / distance; i += 2)
    v[i / 2] = f(every_other<distance, false>(v[i], v[i + 1], all),
                 every_other<distance, true>(v[i], v[i + 1], all));
  if constexpr (2 * distance < lanes) return fold_each<A, 2 * distance>(v, f);
  else return v[0];
}

}  // namespace foveate
