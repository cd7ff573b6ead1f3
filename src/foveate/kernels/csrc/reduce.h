// Reductions of a matrix that lies row by row: along a row, or down the columns of a tile.
// Pooling over positions is the one in contiguous maps and the other in channels_last maps;
// pooling over channels is the reverse.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "vec.h"

namespace foveate {

// Rows summed in one accumulator before it is added to the total: bounds the rounding error.
constexpr Index kChunk = 64;
// Places for columns reduced at once: their accumulators stay in the first cache.
constexpr Index kTile = 512;
// Columns that fit, with room for the overlapping slice.
constexpr Index kWidth = kTile - 16;

template <class A>
struct Peak {
  A value;
  Index at;
};

// Where v displaces m: it is larger, or the first NaN.
template <class A>
inline auto displaces(Vec<A> v, Vec<A> m) {
  return (v > m) | ((v != v) & (m == m));
}

// The largest of the lanes' largest values; the first of equal ones, and of NaNs.
template <class A>
inline Peak<A> across(Vec<A> peak, Vec<Lane<A>> at) {
  constexpr auto larger = [](auto a, auto b) { return a > b ? a : b; };
  constexpr auto smaller = [](auto a, auto b) { return a < b ? a : b; };
  const auto nans = peak != peak;
  const bool nan = fold<Lane<A>>(nans, [](auto a, auto b) { return a | b; });
  const A best = nan ? std::numeric_limits<A>::quiet_NaN() : fold<A>(peak, larger);
  const auto those = nan ? nans : (peak == splat(best));
  const auto never = splat(std::numeric_limits<Lane<A>>::max());
  return {best, fold<Lane<A>>(those ? at : never, smaller)};
}

// Takes over where v displaces m, or equals it from an earlier place.
template <class A>
inline void merge(Vec<A>& m, Vec<Lane<A>>& at, Vec<A> v, Vec<Lane<A>> from) {
  const auto same = (v == m) | ((v != v) & (m != m));
  const auto better = displaces<A>(v, m) | (same & (from < at));
  m = better ? v : m;
  at = better ? from : at;
}

template <class A>
inline void put_away(Vec<A>* part, Vec<A>& total) {
  total += (part[0] + part[1]) + (part[2] + part[3]);
  for (Index t = 0; t < kTurns; ++t) part[t] = Vec<A>{};
}

// As each_turn for long rows: calls `end` after each block of them, so that sums can be put away.
template <class A, class F, class G>
inline void each_part(Index n, const F& f, const G& end) {
  constexpr Index block = kChunk * kTurns * kLanes<A>;
  for (Index first = 0; first < n; first += block) {
    // A block of less than a vector, behind others, would have nothing to overlap with.
    const Index left = n - first, count = left < block + kLanes<A> ? left : block;
    each_turn<A>(count, [&](auto s, auto turn) {
      s.at += first;
      f(s, turn);
    });
    end();
    if (count == left) break;
  }
}

// Sums of one row: f(slice) gives what to add up. Long rows are summed in blocks.
template <class A, class F>
inline A sum_row(Index n, const F& f) {
  Vec<A> total = {}, part[kTurns] = {};
  each_part<A>(
      n, [&](const auto& s, auto turn) { part[turn] += masked<A>(f(s), s, A(0)); },
      [&] { put_away<A>(part, total); });
  return sum<A>(total);
}

// Sum and peak of one row, its values weighted where weights are given.
template <class T, bool kPeak>
inline Acc<T> reduce_row(const T* x, const Acc<T>* weight, Index n, Peak<Acc<T>>* peak) {
  using A = Acc<T>;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  const auto weighted = [&](const auto& s) {
    return weight ? load(x, s) * load(weight, s) : load(x, s);
  };
  if constexpr (!kPeak) return sum_row<A>(n, weighted);
  // Lanes start at the positions they see first, for rows of nothing but minus infinity.
  Vec<A> total[kTurns] = {}, top[kTurns];
  Vec<Lane<A>> at[kTurns];
  for (Index t = 0; t < kTurns; ++t) {
    top[t] = splat(lowest);
    at[t] = iota<A>() + Lane<A>(t * kLanes<A>);
  }
  each_turn<A>(n, [&](const auto& s, auto turn) {
    const Vec<A> v = weighted(s);
    total[turn] += masked<A>(v, s, A(0));
    const Vec<A> w = masked<A>(v, s, lowest);
    const auto better = displaces<A>(w, top[turn]);
    top[turn] = better ? w : top[turn];
    at[turn] = better ? iota<A>() + Lane<A>(s.at) : at[turn];
  });
  for (Index t = 1; t < kTurns && n >= 2 * kTurns * kLanes<A>; ++t) merge<A>(top[0], at[0], top[t], at[t]);
  *peak = across<A>(top[0], at[0]);
  return sum<A>((total[0] + total[1]) + (total[2] + total[3]));
}

// Sum of squared deviations from the mean of one row.
template <class T>
inline Acc<T> spread_row(const T* x, Acc<T> mean, Index n) {
  using A = Acc<T>;
  return sum_row<A>(n, [&](const auto& s) {
    const Vec<A> d = load(x, s) - mean;
    return d * d;
  });
}

// Accumulators of the columns of one tile, a vector for each slice of a row. Those of the last
// slice overlap the ones before it.
template <class A>
struct Columns {
  A total[kTile], peak[kTile], spread[kTile];
  Lane<A> at[kTile];
};

template <class T>
struct Matrix {
  const T* x;
  Index rows, columns, stride;
};

// Where the accumulator of a column is.
template <class A>
inline Index slot(Index column, Index columns) {
  const Index whole = columns / kLanes<A> * kLanes<A>;
  return column < whole || !whole ? column : column - columns + kLanes<A> + whole;
}

// Calls f(slice, accumulator's place) for each slice of the columns.
template <class A, class F>
inline void each_slot(Index columns, const F& f) {
  Index at = 0;
  each_slice<A>(columns, [&](const auto& s) {
    f(s, at);
    at += kLanes<A>;
  });
}

// How many rows ahead to fetch when `few` are read at once: 4096 bytes at least.
template <class T>
inline Index rows_ahead(Index few, Index stride) {
  return std::max<Index>(few, 4096 / (stride * sizeof(T)));
}

// Room for values that are written before they are read, from the beginning of a line of memory on.
template <class A>
class Lines {
 public:
  explicit Lines(Index n)
      : lines_(std::make_unique_for_overwrite<Line[]>((n + kLanes<A> - 1) / kLanes<A>)) {}
  A* data() { return lines_[0].values; }

 private:
  struct alignas(64) Line {
    A values[kLanes<A>];
  };
  std::unique_ptr<Line[]> lines_;
};

// Accumulators for that many columns, in whole lines of the cache.
template <class A>
class Room {
 public:
  explicit Room(Index columns, Index times = 1, A value = 0)
      : stride((columns + kLanes<A> - 1) / kLanes<A> * kLanes<A>), lines_(stride * times) {
    std::fill_n(data(), stride * times, value);
  }
  A* data() { return lines_.data(); }
  A& operator[](Index i) { return data()[i]; }
  const Index stride;

 private:
  Lines<A> lines_;
};

// Calls f(first row, count) with the rows in groups: the count of all but the last is a constant.
template <class F>
inline void each_group(Index first, Index end, const F& f) {
  constexpr Index kGroup = 4;
  for (; first + kGroup <= end; first += kGroup)
    f(first, std::integral_constant<Index, kGroup>{});
  if (first < end) f(first, end - first);
}

template <class T, bool kPeak>
inline void add_rows(const Matrix<T>& m, Index first, Index end, const Acc<T>* weight,
                     Acc<T>* part, Columns<Acc<T>>& to) {
  using A = Acc<T>;
  each_group(first, end, [&](Index i, auto count) {
    each_slot<A>(m.columns, [&](const auto& slice, Index at) {
      Vec<A> s = widen(part + at), top = {};
      Vec<Lane<A>> where = {};
      if constexpr (kPeak) {
        top = widen(to.peak + at);
        std::memcpy(&where, to.at + at, sizeof where);
      }
      for (Index r = i; r < i + count; ++r) {
        Vec<A> v = load(m.x + r * m.stride, slice);
        if (weight) v *= weight[r];
        s += v;
        if constexpr (kPeak) {
          const auto better = displaces<A>(v, top);
          top = better ? v : top;
          where = better ? splat<Lane<A>>(r) : where;
        }
      }
      narrow(part + at, s);
      if constexpr (kPeak) {
        narrow(to.peak + at, top);
        std::memcpy(to.at + at, &where, sizeof where);
      }
    });
  });
}

// Adds the spread of `count` rows to that of the `first` rows before them (Chan et al., 1979).
template <class T>
inline void merge_spread(const Matrix<T>& m, Index first, Index count, const Acc<T>* part,
                         Columns<Acc<T>>& to) {
  using A = Acc<T>;
  each_slot<A>(m.columns, [&](const auto& slice, Index at) {
    const Vec<A> mean = widen(part + at) / A(count);
    Vec<A> squares = {};
    for (Index i = first; i < first + count; ++i) {
      const Vec<A> d = load(m.x + i * m.stride, slice) - mean;
      squares += d * d;
    }
    const Vec<A> gap = first ? mean - widen(to.total + at) / A(first) : Vec<A>{};
    const A share = A(first) * count / (first + count);
    narrow(to.spread + at, widen(to.spread + at) + squares + gap * gap * share);
  });
}

// Sum, and where asked peak and spread, of each column of a tile of fewer than kTile columns.
template <class T, bool kPeak, bool kSpread>
inline void reduce_columns(const Matrix<T>& m, const Acc<T>* weight, Columns<Acc<T>>& to) {
  using A = Acc<T>;
  std::fill_n(to.total, kTile, A(0));
  if (kPeak) std::fill_n(to.peak, kTile, -std::numeric_limits<A>::infinity());
  if (kPeak) std::fill_n(to.at, kTile, Lane<A>(0));
  if (kSpread) std::fill_n(to.spread, kTile, A(0));
  for (Index i = 0; i < m.rows; i += kChunk) {
    const Index count = std::min(kChunk, m.rows - i);
    A part[kTile] = {};
    add_rows<T, kPeak>(m, i, i + count, weight, part, to);
    if constexpr (kSpread) merge_spread(m, i, count, part, to);
    for (Index j = 0; j < kTile; ++j) to.total[j] += part[j];
  }
}

// What a dot product multiplies x by: other * weight + plus. Absent ones are null; plus needs
// both others.
template <class T>
struct Factors {
  const T* other;
  const Acc<T>* weight;
  const Acc<T>* plus;
};

// Calls f with the absences as compile-time constants.
template <class T, class F>
inline void specialise(const Factors<T>& by, const F& f) {
  using Yes = std::true_type;
  using No = std::false_type;
  if (by.plus) return f(Yes{}, Yes{}, Yes{});
  if (by.other && by.weight) return f(Yes{}, Yes{}, No{});
  if (by.other) return f(Yes{}, No{}, No{});
  if (by.weight) return f(No{}, Yes{}, No{});
  f(No{}, No{}, No{});
}

// Dot product along a row, where weight and plus vary.
template <class T>
inline Acc<T> dot_row(const T* x, const Factors<T>& by, Index n) {
  using A = Acc<T>;
  A total = 0;
  specialise(by, [&](auto other, auto weight, auto plus) {
    total = sum_row<A>(n, [&](const auto& s) {
      Vec<A> v = load(x, s);
      if constexpr (plus) {
        v *= load(by.other, s) * load(by.weight, s) + load(by.plus, s);
      } else {
        if constexpr (other) v *= load(by.other, s);
        if constexpr (weight) v *= load(by.weight, s);
      }
      return v;
    });
  });
  return total;
}

// Dot products down the columns of a tile; weight and plus vary from row to row, `step` apart.
template <class T>
inline void dot_columns(const Matrix<T>& m, const Factors<T>& by, Index step, Acc<T>* total) {
  using A = Acc<T>;
  std::fill_n(total, kTile, A(0));
  specialise(by, [&](auto other, auto weight, auto plus) {
    for (Index chunk = 0; chunk < m.rows; chunk += kChunk) {
      A part[kTile] = {};
      each_group(chunk, std::min(m.rows, chunk + kChunk), [&](Index i, auto count) {
        each_slot<A>(m.columns, [&](const auto& slice, Index at) {
          Vec<A> s = widen(part + at);
          for (Index r = i; r < i + count; ++r) {
            Vec<A> v = load(m.x + r * m.stride, slice);
            if constexpr (plus) {
              v *= load(by.other + r * m.stride, slice) * by.weight[r * step] + by.plus[r * step];
            } else {
              if constexpr (other) v *= load(by.other + r * m.stride, slice);
              if constexpr (weight) v *= by.weight[r * step];
            }
            s += v;
          }
          narrow(part + at, s);
        });
      });
      for (Index j = 0; j < kTile; ++j) total[j] += part[j];
    }
  });
}

}  // namespace foveate
