// Convolution of a few planes to one, and its gradients, for the maps that spatial gates see.
// General convolutions are made for many channels and spend most of their time on none.
#include "common.h"

namespace foveate {
namespace {

struct Size {
  Index B, K, H, W, rows, columns;  // planes of H x W, a kernel of rows x columns, both odd
};

// to[j] += weight * from[j + by] for all j in [0, W) where j + by is one too.
template <class A>
inline void add_shifted(A* to, const A* from, A weight, Index by, Index W) {
  const Index first = std::max<Index>(0, -by), end = std::min(W, W - by);
  if (first >= end) return;
  A* t = to + first;
  const A* f = from + first + by;
  Index j = 0;
  for (; j + kLanes<A> <= end - first; j += kLanes<A>)
    narrow(t + j, widen(t + j) + weight * widen(f + j));
  for (; j < end - first; ++j) t[j] += weight * f[j];
}

// One row of the sum over planes and kernel positions; `turned` walks the kernel backwards.
template <class A>
void filter(const A* z, const A* weight, A* to, const Size& s, Index image, bool turned) {
  // z is (planes, H, W) of one image, `to` one plane; weight (planes, rows, columns).
  std::fill_n(to, s.H * s.W, A(0));
  for (Index h = 0; h < s.H; ++h)
    for (Index k = 0; k < image; ++k)
      for (Index r = 0; r < s.rows; ++r) {
        const Index from = h + (turned ? s.rows / 2 - r : r - s.rows / 2);
        if (from < 0 || from >= s.H) continue;
        for (Index c = 0; c < s.columns; ++c) {
          const Index by = turned ? s.columns / 2 - c : c - s.columns / 2;
          add_shifted(to + h * s.W, z + (k * s.H + from) * s.W,
                      weight[(k * s.rows + r) * s.columns + c], by, s.W);
        }
      }
}

template <class A>
inline A dot_shifted(const A* g, const A* z, Index by, Index W) {
  const Index first = std::max<Index>(0, -by), end = std::min(W, W - by);
  Vec<A> total = {};
  A rest = 0;
  Index j = first;
  for (; j + kLanes<A> <= end; j += kLanes<A>) total += widen(g + j) * widen(z + j + by);
  for (; j < end; ++j) rest += g[j] * z[j + by];
  return sum<A>(total) + rest;
}

}  // namespace

Size size_of(const Tensor& z, const Tensor& weight) {
  return {z.size(0), z.size(1), z.size(2), z.size(3), weight.size(2), weight.size(3)};
}

void stencil(Tensor z, Tensor weight, Tensor to) {
  dispatch(z, [&](auto* t) {
    using A = Acc<std::remove_pointer_t<decltype(t)>>;
    const Size s = size_of(z, weight);
    const Index N = s.H * s.W;
    parallel(s.B, s.K * N * s.rows * s.columns, [&](Index b) {
      filter(in<A>(z) + b * s.K * N, in<A>(weight), out<A>(to) + b * N, s, s.K, false);
    });
  });
}

void stencil_input(Tensor grad, Tensor weight, Tensor to) {
  dispatch(grad, [&](auto* t) {
    using A = Acc<std::remove_pointer_t<decltype(t)>>;
    const Size s = size_of(to, weight);
    const Index N = s.H * s.W, taps = s.rows * s.columns;
    parallel(s.B * s.K, N * taps, [&](Index i) {
      filter(in<A>(grad) + i / s.K * N, in<A>(weight) + i % s.K * taps, out<A>(to) + i * N, s, 1,
             true);
    });
  });
}

// One partial sum for each image, (B, K, rows, columns): the same bits on any number of threads.
void stencil_weight(Tensor grad, Tensor z, Tensor to) {
  dispatch(grad, [&](auto* t) {
    using A = Acc<std::remove_pointer_t<decltype(t)>>;
    const Size s = size_of(z, to);
    const Index N = s.H * s.W, taps = s.rows * s.columns;
    parallel(s.B * s.K, N * taps, [&](Index i) {
      const A *g = in<A>(grad) + i / s.K * N, *p = in<A>(z) + i * N;
      A* sums = out<A>(to) + i * taps;
      std::fill_n(sums, taps, A(0));
      for (Index h = 0; h < s.H; ++h)
        for (Index r = 0; r < s.rows; ++r) {
          const Index from = h + r - s.rows / 2;
          if (from < 0 || from >= s.H) continue;
          for (Index c = 0; c < s.columns; ++c)
            sums[r * s.columns + c] +=
                dot_shifted(g + h * s.W, p + from * s.W, c - s.columns / 2, s.W);
        }
    });
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def("stencil(Tensor z, Tensor weight, Tensor(a!) to) -> ()");
  m.def("stencil_input(Tensor grad, Tensor weight, Tensor(a!) to) -> ()");
  m.def("stencil_weight(Tensor grad, Tensor z, Tensor(a!) to) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("stencil", TORCH_BOX(&foveate::stencil));
  m.impl("stencil_input", TORCH_BOX(&foveate::stencil_input));
  m.impl("stencil_weight", TORCH_BOX(&foveate::stencil_weight));
}
