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

// Sums of columns: f(row, slice) gives what to add up, and the sums go to `to`. Rows that follow each
// other in memory are read fastest one by one, rows that are `apart` a few at once.
template <class A, class F>
inline void sum_columns(Index rows, Index columns, bool apart, const F& f, A* to) {
  constexpr Index kFew = 4;
  Room<A> total(columns), some(columns), part(columns);
  const auto add = [&](Index i, auto count) {
    each_slot<A>(columns, [&](const auto& slice, Index at) {
      Vec<A> sums = widen(part.data() + at);
      for (Index r = i; r < i + count; ++r) sums += f(r, slice);
      narrow(part.data() + at, sums);
    });
  };
  const auto end = [&](bool many) {
    for (Index j = 0; j < total.stride; ++j) some[j] += part[j], part[j] = 0;
    for (Index j = 0; many && j < total.stride; ++j) total[j] += some[j], some[j] = 0;
  };
  if (apart) each_chunk<kFew>(rows, add, end);
  else each_chunk<1>(rows, add, end);
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
    const T *xs = x + at, *gs = g + at;
    if (s.last) {
      const Vec<A> sums = sum_rows<A>(n, s.C, [&](Index r, const auto& i) {
        return load(xs + r * stride, i) * load(gs + r * stride, i) * load(by, i);
      });
      return store(to + b * N + p, sums, Slice<A>{0, 0, n});
    }
    const auto weighed = [&](Index r, const auto& i) {
      return load(xs + r * stride, i) * load(gs + r * stride, i) * by[r];
    };
    sum_columns(s.C, n, n < N, weighed, to + b * N + p);
  });
}

// What a pass over the positions multiplies g by and adds to it, and adds to the channel `at` alone;
// null for ones and zeros.
template <class A>
struct Positions {
  const A *gate = nullptr, *plus = nullptr, *peak = nullptr;  // (B, H, W)
  const int32_t* at = nullptr;

  // Of image b of n positions.
  Positions of(Index b, Index n) const {
    const auto own = [&](auto p) { return p ? p + b * n : p; };
    return {own(gate), own(plus), own(peak), own(at)};
  }

  // For channels of which c is the first, at position p.
  template <class S>
  Vec<A> across(Vec<A> g, Index p, Index c, const S& s) const {
    if (gate) g = g * gate[p] + plus[p];
    if (!at) return g;
    const auto here = iota<A>() + Lane<A>(s.at) == Lane<A>(at[p] - c);
    return g + (here ? splat(peak[p]) : Vec<A>{});
  }

  // For channel c, at positions.
  template <class S>
  Vec<A> along(Vec<A> g, Index c, const S& s) const {
    if (gate) g = g * load(gate, s) + load(plus, s);
    return at ? g + (load_index(at, s) == Lane<A>(c) ? load(peak, s) : Vec<A>{}) : g;
  }
};

// For each channel, the sum over the positions of x (g gate + plus), and of x peak at its places.
template <class T>
void dot_positions(const T* x, const T* g, const Images& s, const Positions<Acc<T>>& by,
                   Acc<T>* to) {
  using A = Acc<T>;
  const Index N = s.N(), width = s.last ? read_width(s, s.C) : kLanes<A>;
  const Index tiles = (s.C + width - 1) / width;
  parallel(s.B * tiles, N * width, [&](Index i) {
    const Index b = i / tiles, c = i % tiles * width, n = std::min(width, s.C - c);
    const Index stride = s.last ? s.C : N, at = s.last ? b * N * s.C + c : (b * s.C + c) * N;
    const T *xs = x + at, *gs = g + at;
    const Positions<A> own = by.of(b, N);
    if (!s.last) {
      const Vec<A> sums = sum_rows<A>(n, N, [&](Index r, const auto& i) {
        return own.along(load(gs + r * stride, i), c + r, i) * load(xs + r * stride, i);
      });
      return store(to + b * s.C + c, sums, Slice<A>{0, 0, n});
    }
    const auto both = [&](Index r, const auto& i) {
      return own.across(load(gs + r * stride, i), r, c, i) * load(xs + r * stride, i);
    };
    sum_columns(N, n, n < s.C, both, to + b * s.C + c);
  });
}

// channel (g gate + plus + peak at its places) + add, the gradient of the map. `past`: write past the
// caches.
template <class T>
void spread(const T* g, const Shape& s, const Acc<T>* channel, const Positions<Acc<T>>& by,
            const Acc<T>* add, T* to, bool past) {
  using A = Acc<T>;
  constexpr Index kRows = 16;
  const Index N = s.N(), rows = s.last ? N : s.C, n = s.last ? s.C : N;
  const Index tiles = (rows + kRows - 1) / kRows;
  writing(past, [&](const auto& write) {
    parallel(s.B * tiles, kRows * n, [&](Index tile) {
      const Index b = tile / tiles, first = tile % tiles * kRows, end = std::min(rows, first + kRows);
      const Positions<A> own = by.of(b, N);
      const A *times = channel + b * s.C, *more = add + b * s.C;
      for (Index r = first; r < end; ++r) {
        const T* from = g + (b * rows + r) * n;
        T* into = to + (b * rows + r) * n;
        if (s.last) {
          each_slice<A>(n, [&](const auto& i) {
            const Vec<A> v = own.across(load(from, i), r, 0, i);
            write(into, v * load(times, i) + load(more, i), i);
          });
        } else {
          const Vec<A> factor = splat(times[r]), rest = splat(more[r]);
          each_slice<A>(n, [&](const auto& i) {
            write(into, own.along(load(from, i), r, i) * factor + rest, i);
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
