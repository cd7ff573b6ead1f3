// The energy gate of SimAM, whole: every channel of every image is on its own, so statistics,
// gate and product need its plane to be fetched once.
//   y = x (1 + a (sigma(e^2 + 1/2) - 1)),  e = (x - mean) s,  s = (variance + lambda)^(-1/2) / 2
#include <cmath>

#include "common.h"
#include "exp.h"
#include "reduce.h"

namespace foveate {
namespace {

template <class A>
struct Moments {
  A mean, scale;
};

template <class A>
inline A freedom(Index n) {
  return n > 1 ? n - 1 : 1;
}

template <class A>
inline Moments<A> moments(A total, A spread, Index n, A lambda) {
  return {total / n, A(0.5) / std::sqrt(spread / freedom<A>(n) + lambda)};
}

// What one element hands on: gradients of its deviation, of the scale and of the strength.
template <class A>
struct Slopes {
  Vec<A> factor, deviation, scale, strength;
};

template <class A, class V>
inline Slopes<A> slopes(Vec<A> x, Vec<A> g, V mean, V scale, A a) {
  const Vec<A> d = x - mean, e = d * scale;
  const Vec<A> s = logistic<Vec<A>>(e * e + A(0.5));
  const Vec<A> of_e = g * x * a * s * (1 - s) * 2 * e;
  return {(s - 1) * a + 1, of_e * scale, of_e * d, g * x * (s - 1)};
}

template <class A, class V>
inline Vec<A> weighed(Vec<A> x, V mean, V scale, A a) {
  const Vec<A> e = (x - mean) * scale;
  return x * ((logistic<Vec<A>>(e * e + A(0.5)) - 1) * a + 1);
}

template <class T>
void energy_plane(const T* x, T* y, Index n, Acc<T> lambda, Acc<T> a) {
  using A = Acc<T>;
  const A total = reduce_row<T, false>(x, nullptr, n, nullptr);
  const auto m = moments<A>(total, spread_row(x, total / n, n), n, lambda);
  const Vec<A> mean = splat(m.mean), scale = splat(m.scale);
  each_slice<A>(n, [&](const auto& s) { store(y, weighed<A>(load(x, s), mean, scale, a), s); });
}

template <class T>
Acc<T> energy_plane_gradient(const T* x, const T* g, T* gx, Index n, Acc<T> lambda, Acc<T> a) {
  using A = Acc<T>;
  const A total = reduce_row<T, false>(x, nullptr, n, nullptr);
  const auto m = moments<A>(total, spread_row(x, total / n, n), n, lambda);
  const Vec<A> mean = splat(m.mean), scale = splat(m.scale);
  Vec<A> deviation = {}, of_scale = {}, strength = {};
  each_slice<A>(n, [&](const auto& s) {
    const auto p = slopes<A>(load(x, s), load(g, s), mean, scale, a);
    deviation += masked<A>(p.deviation, s, A(0));
    of_scale += masked<A>(p.scale, s, A(0));
    strength += masked<A>(p.strength, s, A(0));
  });
  const A shared = -sum<A>(deviation) / n;
  const A spread = -4 * sum<A>(of_scale) * m.scale * m.scale * m.scale / freedom<A>(n);
  each_slice<A>(n, [&](const auto& s) {
    const Vec<A> v = load(x, s), w = load(g, s);
    const auto p = slopes<A>(v, w, mean, scale, a);
    store(gx, w * p.factor + p.deviation + shared + (v - mean) * spread, s);
  });
  return sum<A>(strength);
}

// The same for adjacent channels in a channels_last map, a vector of them for each slice.
template <class T>
struct Tile {
  Columns<Acc<T>> of;
  Acc<T> mean[kTile], scale[kTile];

  Tile(const Matrix<T>& m, Acc<T> lambda) {
    reduce_columns<T, false, true>(m, nullptr, of);
    for (Index j = 0; j < kTile; ++j) {
      const auto found = moments<Acc<T>>(of.total[j], of.spread[j], m.rows, lambda);
      mean[j] = found.mean, scale[j] = found.scale;
    }
  }
};

template <class T>
void energy_tile(const Matrix<T>& m, T* y, Acc<T> lambda, Acc<T> a) {
  using A = Acc<T>;
  const Tile<T> t(m, lambda);
  for (Index i = 0; i < m.rows; ++i)
    each_slot<A>(m.columns, [&](const auto& s, Index at) {
      const Vec<A> v = load(m.x + i * m.stride, s);
      store(y + i * m.stride, weighed<A>(v, widen(t.mean + at), widen(t.scale + at), a), s);
    });
}

template <class T>
void energy_tile_gradient(const Matrix<T>& m, const T* g, T* gx, Acc<T> lambda, Acc<T> a,
                          Acc<T>* strength) {
  using A = Acc<T>;
  const Tile<T> t(m, lambda);
  A deviation[kTile] = {}, of_scale[kTile] = {}, of_strength[kTile] = {};
  for (Index i = 0; i < m.rows; ++i)
    each_slot<A>(m.columns, [&](const auto& s, Index at) {
      const Index row = i * m.stride;
      const auto p = slopes<A>(load(m.x + row, s), load(g + row, s), widen(t.mean + at),
                               widen(t.scale + at), a);
      narrow(deviation + at, widen(deviation + at) + p.deviation);
      narrow(of_scale + at, widen(of_scale + at) + p.scale);
      narrow(of_strength + at, widen(of_strength + at) + p.strength);
    });
  for (Index j = 0; j < kTile; ++j) {
    deviation[j] = -deviation[j] / m.rows;
    of_scale[j] *= -4 * t.scale[j] * t.scale[j] * t.scale[j] / freedom<A>(m.rows);
  }
  for (Index i = 0; i < m.rows; ++i)
    each_slot<A>(m.columns, [&](const auto& s, Index at) {
      const Index row = i * m.stride;
      const Vec<A> v = load(m.x + row, s), w = load(g + row, s), mean = widen(t.mean + at);
      const auto p = slopes<A>(v, w, mean, widen(t.scale + at), a);
      store(gx + row,
            w * p.factor + p.deviation + widen(deviation + at) + (v - mean) * widen(of_scale + at),
            s);
    });
  for (Index j = 0; j < m.columns; ++j) strength[j] = of_strength[slot<A>(j, m.columns)];
}

// Calls f(first element, channels) for tiles that stay in the second cache.
template <class F>
void each_tile(const Shape& s, const F& f) {
  const Index width = tile_width(s.B, s.C, 32), tiles = (s.C + width - 1) / width;
  parallel(s.B * tiles, s.N() * width, [&](Index i) {
    const Index b = i / tiles, c = i % tiles * width;
    f(b, c, std::min(width, s.C - c));
  });
}

}  // namespace

void energy(Tensor x, double lambda, Optional strength, Tensor y) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Shape s = shape_of(x);
    const T* from = in<T>(x);
    T* to = out<T>(y);
    const A a = strength ? *in<A>(strength) : A(1);
    expect_pages(to, s.B * s.C * s.N() * sizeof(T));
    if (!s.last)
      return parallel(s.B * s.C, 4 * s.N(), [&](Index p) {
        energy_plane(from + p * s.N(), to + p * s.N(), s.N(), A(lambda), a);
      });
    each_tile(s, [&](Index b, Index c, Index n) {
      const Index at = b * s.N() * s.C + c;
      energy_tile<T>({from + at, s.N(), n, s.C}, to + at, A(lambda), a);
    });
  });
}

void energy_gradient(Tensor x, Tensor grad, double lambda, Optional strength, Tensor to,
                     Tensor of_strength) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Shape s = shape_of(x);
    const T *from = in<T>(x), *g = in<T>(grad);
    T* gx = out<T>(to);
    A* parts = out<A>(of_strength);
    const A a = strength ? *in<A>(strength) : A(1);
    expect_pages(gx, s.B * s.C * s.N() * sizeof(T));
    if (!s.last)
      return parallel(s.B * s.C, 8 * s.N(), [&](Index p) {
        const Index at = p * s.N();
        parts[p] = energy_plane_gradient(from + at, g + at, gx + at, s.N(), A(lambda), a);
      });
    each_tile(s, [&](Index b, Index c, Index n) {
      const Index at = b * s.N() * s.C + c;
      energy_tile_gradient<T>({from + at, s.N(), n, s.C}, g + at, gx + at, A(lambda), a,
                              parts + b * s.C + c);
    });
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def("energy(Tensor x, float regularization, Tensor? strength, Tensor(a!) y) -> ()");
  m.def(
      "energy_gradient(Tensor x, Tensor grad, float regularization, Tensor? strength, "
      "Tensor(a!) to, Tensor(b!) of_strength) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("energy", TORCH_BOX(&foveate::energy));
  m.impl("energy_gradient", TORCH_BOX(&foveate::energy_gradient));
}
