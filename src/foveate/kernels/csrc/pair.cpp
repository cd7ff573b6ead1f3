// Gates that a channel's and a position's value make together, elementwise in the map:
//   0: 1 + a sigma(c + p)      1: 1 + a sigma(c p)      2: 1 + a (choice - 1)
// where the choice is whichever of c and p gives the larger product with x.
#include "common.h"
#include "exp.h"
#include "reduce.h"

namespace foveate {
namespace {

enum Kind : int64_t { kSum, kProduct, kChoice };

template <class A>
struct Pair {
  Vec<A> factor, of_channel, of_position, of_strength;
};

template <int64_t kind, class A>
inline Pair<A> pair_of(Vec<A> x, Vec<A> c, Vec<A> p, A a) {
  if constexpr (kind == kChoice) {
    const Vec<A> half = splat(A(0.5)), one = splat(A(1)), none = {};
    const auto tie = (c == p) | !((x > none) | (x < none));
    const auto larger = (x > none) == (c > p);
    const Vec<A> share = tie ? half : (larger ? one : none);
    Vec<A> chosen = share * c + (1 - share) * p;
    // An infinite x times a zero is no number, and the larger of that and anything neither.
    const auto infinite = (x == x) & (x - x != none);
    chosen = infinite & ((c == none) | (p == none)) ? x - x : chosen;
    return {(chosen - 1) * a + 1, share * a, (1 - share) * a, chosen - 1};
  } else {
    const Vec<A> s = logistic<Vec<A>>(kind == kSum ? c + p : c * p), slope = a * s * (1 - s);
    const Vec<A> by_c = kind == kSum ? slope : slope * p, by_p = kind == kSum ? slope : slope * c;
    return {s * a + 1, by_c, by_p, s};
  }
}

template <class A>
struct Arguments {
  const A *channel, *position, *add, *map, *weight;
  A strength;
};

// Calls f with the kind as a compile-time constant.
template <class F>
inline void each_kind(int64_t kind, const F& f) {
  if (kind == kSum) return f(std::integral_constant<int64_t, kSum>{});
  if (kind == kProduct) return f(std::integral_constant<int64_t, kProduct>{});
  f(std::integral_constant<int64_t, kChoice>{});
}

template <class A, class S>
inline Vec<A> along(const A* p, const S& s, A otherwise) {
  return p ? load(p, s) : splat(otherwise);
}

// One plane or one position: of channel and position values, one varies and one is a number.
template <int64_t kind, class T>
void pair_run(const T* source, const T* x, T* to, Index n, const Arguments<Acc<T>>& v, bool last,
              Index channel, Index position) {
  using A = Acc<T>;
  const A* vary = last ? v.channel + channel : v.position + position;
  const Vec<A> fixed = splat(last ? v.position[position] : v.channel[channel]);
  const A scale = !v.map ? A(0) : last ? v.map[position] : v.weight[channel];
  const A* scaled = !v.map ? nullptr : last ? v.weight + channel : v.map + position;
  const A* adds = v.add && last ? v.add + channel : nullptr;
  const A add = v.add && !last ? v.add[channel] : A(0);
  each_slice<A>(n, [&](const auto& s) {
    const Vec<A> w = load(vary, s);
    const auto g = pair_of<kind, A>(load(x, s), last ? w : fixed, last ? fixed : w, v.strength);
    Vec<A> y = load(source, s) * g.factor;
    if (v.add) y += along<A>(adds, s, add);
    if (v.map) y += scale * load(scaled, s);
    store(to, y, s);
  });
}

template <int64_t kind, class T>
void pair_gates(const T* source, const T* x, T* to, const Shape& s, const Arguments<Acc<T>>& v) {
  const Index rows = s.last ? s.B * s.N() : s.B * s.C, n = s.last ? s.C : s.N();
  parallel(rows, 4 * n, [&](Index row) {
    const Index b = s.last ? row / s.N() : row / s.C;
    pair_run<kind>(source + row * n, x + row * n, to + row * n, n, v, s.last,
                   s.last ? b * s.C : row, s.last ? row : b * s.N());
  });
}

// Sums along rows: over positions in contiguous maps, over channels in channels_last maps.
template <int64_t kind, class T>
void pair_rows(const T* x, const T* g, const Shape& s, const Arguments<Acc<T>>& v, Acc<T>* to,
               Acc<T>* strength) {
  using A = Acc<T>;
  const Index rows = s.last ? s.B * s.N() : s.B * s.C, n = s.last ? s.C : s.N();
  parallel(rows, 4 * n, [&](Index row) {
    const Index b = s.last ? row / s.N() : row / s.C;
    const A* vary = s.last ? v.channel + b * s.C : v.position + b * s.N();
    const Vec<A> fixed = splat(s.last ? v.position[row] : v.channel[row]);
    Vec<A> total = {}, of_strength = {};
    each_slice<A>(n, [&](const auto& slice) {
      const Vec<A> xs = load(x + row * n, slice), gx = xs * load(g + row * n, slice);
      const Vec<A> w = load(vary, slice);
      const auto p = pair_of<kind, A>(xs, s.last ? w : fixed, s.last ? fixed : w, v.strength);
      total += masked<A>(gx * (s.last ? p.of_position : p.of_channel), slice, A(0));
      of_strength += masked<A>(gx * p.of_strength, slice, A(0));
    });
    to[row] = sum<A>(total);
    if (!s.last) strength[row] = sum<A>(of_strength);
  });
}

// Sums down columns: over channels in contiguous maps, over positions in channels_last maps.
template <int64_t kind, class T>
void pair_columns(const T* x, const T* g, const Shape& s, const Arguments<Acc<T>>& v, Acc<T>* to,
                  Acc<T>* strength) {
  using A = Acc<T>;
  const Index rows = s.last ? s.N() : s.C, columns = s.last ? s.C : s.N();
  const Index width = tile_width(s.B, columns, kWidth), tiles = (columns + width - 1) / width;
  parallel(s.B * tiles, 4 * rows * width, [&](Index i) {
    const Index b = i / tiles, first = i % tiles * width, n = std::min(width, columns - first);
    const A* vary = (s.last ? v.channel : v.position) + b * columns + first;
    const A* fixed = (s.last ? v.position : v.channel) + b * rows;
    A total[kTile] = {}, of_strength[kTile] = {}, part[kTile] = {};
    for (Index r = 0; r < rows; ++r) {
      each_slot<A>(n, [&](const auto& slice, Index at) {
        const Index from = (b * rows + r) * columns + first;
        const Vec<A> xs = load(x + from, slice), gx = xs * load(g + from, slice);
        const Vec<A> w = load(vary, slice), one = splat(fixed[r]);
        const auto p = pair_of<kind, A>(xs, s.last ? w : one, s.last ? one : w, v.strength);
        narrow(part + at, widen(part + at) + gx * (s.last ? p.of_channel : p.of_position));
        if (s.last) narrow(of_strength + at, widen(of_strength + at) + gx * p.of_strength);
      });
      if (r % kChunk && r + 1 < rows) continue;
      for (Index j = 0; j < kTile; ++j) total[j] += part[j], part[j] = 0;
    }
    for (Index j = 0; j < n; ++j) {
      to[b * columns + first + j] = total[slot<A>(j, n)];
      if (s.last) strength[b * columns + first + j] = of_strength[slot<A>(j, n)];
    }
  });
}

}  // namespace

void pair_gate(Tensor source, Tensor x, int64_t kind, Tensor channel, Tensor position,
               Optional strength, Optional add, Optional map, Optional weight, Tensor to) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Shape s = shape_of(x);
    const Arguments<A> v{in<A>(channel), in<A>(position), in<A>(add), in<A>(map), in<A>(weight),
                         strength ? *in<A>(strength) : A(1)};
    expect_pages(out<T>(to), s.B * s.C * s.N() * sizeof(T));
    each_kind(kind, [&](auto k) {
      pair_gates<decltype(k)::value>(in<T>(source), in<T>(x), out<T>(to), s, v);
    });
  });
}

void pair_dot(Tensor x, Tensor grad, int64_t kind, Tensor channel, Tensor position,
              Optional strength, Tensor of_channel, Tensor of_position, Tensor of_strength) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Shape s = shape_of(x);
    const Arguments<A> v{in<A>(channel), in<A>(position), nullptr, nullptr, nullptr,
                         strength ? *in<A>(strength) : A(1)};
    each_kind(kind, [&](auto k) {
      A *c = out<A>(of_channel), *p = out<A>(of_position), *a = out<A>(of_strength);
      pair_rows<decltype(k)::value>(in<T>(x), in<T>(grad), s, v, s.last ? p : c, a);
      pair_columns<decltype(k)::value>(in<T>(x), in<T>(grad), s, v, s.last ? c : p, a);
    });
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "pair_gate(Tensor source, Tensor x, int kind, Tensor channel, Tensor position, "
      "Tensor? strength, Tensor? add, Tensor? map, Tensor? weight, Tensor(a!) to) -> ()");
  m.def(
      "pair_dot(Tensor x, Tensor grad, int kind, Tensor channel, Tensor position, "
      "Tensor? strength, Tensor(a!) of_channel, Tensor(b!) of_position, Tensor(c!) of_strength) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("pair_gate", TORCH_BOX(&foveate::pair_gate));
  m.impl("pair_dot", TORCH_BOX(&foveate::pair_dot));
}
