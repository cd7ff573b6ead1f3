// Convolution of a few planes to one on planes with a margin of zeros, whose rows follow one
// another: every position, margins included, is a sum of the same shifts of one long vector.
#pragma once

#include "common.h"

namespace foveate {

struct Margin {
  Index H, W, side;  // of planes without margin; a kernel of side x side, odd
  Index stride() const { return W + side - 1; }
  // With room for the vectors that begin in the last row.
  Index plane() const { return (H + side) * stride() + 64; }
  Index first() const { return side / 2 * (stride() + 1); }
};

// Planes with margins around them.
template <class A>
void pad(const Margin& m, const A* planes, Index count, A* to) {
  std::fill_n(to, count * m.plane(), A(0));
  for (Index k = 0; k < count; ++k)
    for (Index h = 0; h < m.H; ++h)
      std::copy_n(planes + (k * m.H + h) * m.W, m.W,
                  to + k * m.plane() + m.first() + h * m.stride());
}

// The sum over planes and places in the kernel, with strides of padded rows, from the first one on.
template <class A>
void convolve(const Margin& m, const A* padded, Index planes, const A* weight, A* to) {
  constexpr Index kMany = 4, lanes = kLanes<A>;
  const Index n = (m.H - 1) * m.stride() + m.W;
  for (Index j = 0; j < n; j += kMany * lanes) {
    Vec<A> total[kMany] = {};
    for (Index k = 0; k < planes; ++k)
      for (Index r = 0; r < m.side; ++r)
        for (Index c = 0; c < m.side; ++c) {
          const A w = weight[(k * m.side + r) * m.side + c];
          const A* from = padded + k * m.plane() + r * m.stride() + c + j;
          for (Index i = 0; i < kMany; ++i) total[i] += w * widen(from + i * lanes);
        }
    for (Index i = 0; i < kMany; ++i) narrow(to + j + i * lanes, total[i]);
  }
}

// The gradient of the kernel, from that of the result on padded planes too.
template <class A>
void convolve_gradient(const Margin& m, const A* padded, Index planes, const A* grad, A* to) {
  constexpr Index kMany = 4, lanes = kLanes<A>;
  const Index n = (m.H - 1) * m.stride() + m.W;
  for (Index k = 0; k < planes; ++k)
    for (Index r = 0; r < m.side; ++r)
      for (Index c = 0; c < m.side; c += kMany) {
        const A* from = padded + k * m.plane() + r * m.stride() + c;
        Vec<A> total[kMany] = {};
        for (Index j = 0; j < n; j += lanes)
          for (Index i = 0; i < kMany; ++i)
            total[i] += widen(grad + m.first() + j) * widen(from + i + j);
        for (Index i = 0; i < std::min(kMany, m.side - c); ++i)
          to[(k * m.side + r) * m.side + c + i] = sum<A>(total[i]);
      }
}

}  // namespace foveate
