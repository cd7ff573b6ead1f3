// Passes for the gradients of whole mechanisms, over the map and the gradient of what it became.
#pragma once

#include "whole.h"

namespace foveate {

// The end of a residual block in the backward pass: what it gave, y, and room for the gradient of the
// shortcut, which is also that of the branch. Both are null where the block's end is not ours.
template <class T>
struct BackThroughEnd {
  const T* y;
  T* of_shortcut;

  BackThroughEnd(const Optional& y, const Optional& of_shortcut)
      : y(in<T>(y)), of_shortcut(out<T>(of_shortcut)) {}

  // Where the gradient of the branch lies, given that of y.
  const T* of_branch(const T* grad) const { return y ? of_shortcut : grad; }

  // The gradient of the branch from element `from` on, n elements, from that of y.
  const T* operator()(const T* grad, Index from, Index n) const {
    using A = Acc<T>;
    constexpr Index kRun = 1 << 12;
    if (!y) return grad + from;
    parallel((n + kRun - 1) / kRun, kRun, [&](Index i) {
      const Index at = from + i * kRun;
      each_slice<A>(std::min(kRun, n - i * kRun), [&](const auto& s) {
        store(of_shortcut + at, load(y + at, s) <= 0 ? Vec<A>{} : load(grad + at, s), s);
      });
    });
    return of_branch(grad) + from;
  }
};

// Sums of rows of up to a vector of them: f(row, slice) gives what to add up.
template <class A, class F>
inline Vec<A> sum_rows(Index rows, Index n, const F& f) {
  Vec<A> sums[kLanes<A>] = {};
  for (Index r = 0; r < rows; ++r) {
    Vec<A> part[kTurns] = {};
    each_part<A>(
        n, [&](const auto& s, auto turn) { part[turn] += masked<A>(f(r, s), s, A(0)); },
        [&] { put_away<A>(part, sums[r]); });
  }
  return fold_each<A>(sums, Add{});
}

// Rows of two maps at once. Where rows are 4096 bytes apart, more would push each other out of the
// first cache.
constexpr Index kPositions = 4, kPlanes = 2;

// Sums of columns: f(row, slice) gives what to add up, and the sums go to `to`.
template <class A, Index few, class F>
inline void sum_columns(Index rows, Index columns, const F& f, A* to) {
  Room<A> total(columns), some(columns), part(columns);
  const auto add = [&](Index i, auto count) {
    each_slot<A>(columns, [&](const auto& slice, Index at) {
      Vec<A> sums = widen(part.data() + at);
      for (Index r = i; r < i + count; ++r) sums += f(r, slice);
      narrow(part.data() + at, sums);
    });
  };
  each_chunk<few>(rows, add, [&](bool many) {
    for (Index j = 0; j < total.stride; ++j) some[j] += part[j], part[j] = 0;
    for (Index j = 0; many && j < total.stride; ++j) total[j] += some[j], some[j] = 0;
  });
  for (Index j = 0; j < columns; ++j) to[j] = total[slot<A>(j, columns)];
}

// At each position, the sum over the channels of x times g times the channel's gate.
template <class T>
void dot_channels(const T* x, const T* g, const Images& s, const Acc<T>* gate, Acc<T>* to) {
  using A = Acc<T>;
  const Index N = s.N(), width = s.last ? kLanes<A> : read_width(s, N);
  const Index tiles = (N + width - 1) / width;
  parallel(s.B * tiles, s.C * width, [&](Index i) {
    const Index b = i / tiles, p = i % tiles * width, n = std::min(width, N - p);
    const A* by = gate + b * s.C;
    const Index stride = s.last ? s.C : N, at = s.last ? (b * N + p) * s.C : b * s.C * N + p;
    const Index ahead = rows_ahead<T>(kPlanes, stride);
    const T *xs = x + at, *gs = g + at;
    if (s.last) {
      const Vec<A> sums = sum_rows<A>(n, s.C, [&](Index r, const auto& i) {
        return load(xs + r * stride, i) * load(gs + r * stride, i) * load(by, i);
      });
      return store(to + b * N + p, sums, Slice<A>{0, 0, n});
    }
    sum_columns<A, kPlanes>(
        s.C, n,
        [&](Index r, const auto& i) {
          __builtin_prefetch(xs + (r + ahead) * stride + i.at);
          __builtin_prefetch(gs + (r + ahead) * stride + i.at);
          return load(xs + r * stride, i) * load(gs + r * stride, i) * by[r];
        },
        to + b * N + p);
  });
}

// What a pass over the positions multiplies g by and adds to it; null for ones and zeros.
template <class A>
struct Positions {
  const A *gate, *plus;  // (B, H, W)
};

// For each channel, the sum over the positions of x (g gate + plus).
template <class T>
void dot_positions(const T* x, const T* g, const Images& s, const Positions<Acc<T>>& by,
                   Acc<T>* to) {
  using A = Acc<T>;
  const Index N = s.N(), width = s.last ? read_width(s, s.C) : kLanes<A>;
  const Index tiles = (s.C + width - 1) / width;
  parallel(s.B * tiles, N * width, [&](Index i) {
    const Index b = i / tiles, c = i % tiles * width, n = std::min(width, s.C - c);
    const Index stride = s.last ? s.C : N, at = s.last ? b * N * s.C + c : (b * s.C + c) * N;
    const Index ahead = rows_ahead<T>(kPositions, stride);
    const T *xs = x + at, *gs = g + at;
    const A *gate = by.gate + b * N, *plus = by.plus + b * N;
    if (!s.last) {
      const Vec<A> sums = sum_rows<A>(n, N, [&](Index r, const auto& i) {
        Vec<A> v = load(gs + r * stride, i);
        if (by.gate) v = v * load(gate, i) + load(plus, i);
        return v * load(xs + r * stride, i);
      });
      return store(to + b * s.C + c, sums, Slice<A>{0, 0, n});
    }
    sum_columns<A, kPositions>(
        N, n,
        [&](Index r, const auto& i) {
          __builtin_prefetch(xs + (r + ahead) * stride + i.at);
          __builtin_prefetch(gs + (r + ahead) * stride + i.at);
          Vec<A> v = load(gs + r * stride, i);
          if (by.gate) v = v * gate[r] + plus[r];
          return v * load(xs + r * stride, i);
        },
        to + b * s.C + c);
  });
}

// channel (g gate + plus) + add, the gradient of the map. `past`: write past the caches.
template <class T>
void spread(const T* g, const Shape& s, const Acc<T>* channel, const Positions<Acc<T>>& by,
            const Acc<T>* add, T* to, bool past) {
  using A = Acc<T>;
  constexpr Index kRows = 16;
  const Index N = s.N(), rows = s.last ? N : s.C, n = s.last ? s.C : N;
  const Index tiles = (rows + kRows - 1) / kRows;
  writing(past, [&](const auto& write) {
    parallel(s.B * tiles, kRows * n, [&](Index tile) {
      const Index b = tile / tiles, first = tile % tiles * kRows;
      const A *gate = by.gate + b * N, *plus = by.plus + b * N;
      for (Index r = first; r < std::min(rows, first + kRows); ++r) {
        const Index row = b * rows + r;
        if (s.last) {
          const Vec<A> times = splat(by.gate ? gate[r] : A(1));
          const Vec<A> more = splat(by.gate ? plus[r] : A(0));
          each_slice<A>(n, [&](const auto& i) {
            const Vec<A> v = load(g + row * n, i) * times + more;
            write(to + row * n, v * load(channel + b * s.C, i) + load(add + b * s.C, i), i);
          });
        } else {
          const Vec<A> times = splat(channel[row]), more = splat(add[row]);
          each_slice<A>(n, [&](const auto& i) {
            Vec<A> v = load(g + row * n, i);
            if (by.gate) v = v * load(gate, i) + load(plus, i);
            write(to + row * n, v * times + more, i);
          });
        }
      }
    }, finish_past);
  });
}

template <class T>
inline void add_at(T* to, Acc<T> more) {
  store(to, splat(value(to) + more), Slice<Acc<T>>{0, 0, 1});
}

}  // namespace foveate
