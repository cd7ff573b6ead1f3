// Passes over some images of a map, for kernels that finish these before they begin others: what
// the last pass read is then still in a cache.
#pragma once

#include <vector>

#include "common.h"
#include "fold.h"
#include "reduce.h"

namespace foveate {

// Some images of a map, and the threads there are for them.
struct Images : Shape {
  Index threads;
};

// Bytes of images that one pass after another may find in a cache.
constexpr Index kNear = 3 << 20;

// Calls f(images, first) for blocks of images. Threads work on images of their own where all have
// as many: what they call in parallel then runs in one, and none waits for another.
template <class F>
inline void each_block(const Shape& s, Index bytes, const F& f) {
  const Index most = std::max<Index>(1, kNear / std::max<Index>(1, s.C * s.N() * bytes));
  const Index threads = torch::stable::get_num_threads();
  const auto run = [&](Index begin, Index end, Index step, Index threads) {
    const Index blocks = (end - begin + step - 1) / step;
    step = (end - begin + blocks - 1) / std::max<Index>(1, blocks);
    for (Index b = begin; b < end; b += step) {
      Images some{s, threads};
      some.B = std::min(step, end - b);
      f(some, b);
    }
  };
  if (s.B % threads && s.B < 4 * threads) return run(0, s.B, threads * most, threads);
  torch::stable::parallel_for(
      0, s.B, 1, [&](int64_t begin, int64_t end) { run(begin, end, most, 1); });
}

// The largest of values of which `at(i)` is one, and `found` the largest that is a number. If one
// is no number neither is their sum, so that it is seldom that they must be looked through.
template <class A, class F>
inline A peak_of(A total, A found, Index n, const F& at) {
  if (total == total) return found;
  for (Index i = 0; i < n; ++i)
    if (const A v = at(i); v != v) return v;
  return found;
}

// Sums and largest values along rows, a vector of rows at a time: f(first, count, sums, peaks).
// The values of row r are weighted by weight(r) where that is not null.
template <class T, bool kPeak, class W, class F>
inline void read_rows(const T* x, Index rows, Index n, const W& weight, const F& f) {
  using A = Acc<T>;
  constexpr Index lanes = kLanes<A>;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  for (Index first = 0; first < rows; first += lanes) {
    const Index count = std::min(lanes, rows - first);
    Vec<A> sums[lanes] = {}, peaks[lanes] = {};
    for (Index r = 0; r < count; ++r) {
      const T* row = x + (first + r) * n;
      const A* by = weight(first + r);
      Vec<A> total[kTurns] = {}, top[kTurns];
      std::fill_n(top, kTurns, splat(lowest));
      each_turn<A>(n, [&](const auto& s, auto turn) {
        Vec<A> v = load(row, s);
        if (by) v *= load(by, s);
        total[turn] += masked<A>(v, s, A(0));
        if constexpr (kPeak) top[turn] = Larger{}(masked<A>(v, s, lowest), top[turn]);
      });
      sums[r] = (total[0] + total[1]) + (total[2] + total[3]);
      if constexpr (kPeak) peaks[r] = Larger{}(Larger{}(top[0], top[1]), Larger{}(top[2], top[3]));
    }
    const Vec<A> total = fold_each<A>(sums, Add{});
    Vec<A> peak = {};
    if constexpr (kPeak) {
      peak = fold_each<A>(peaks, Larger{});
      for (Index r = 0; r < count; ++r)
        peak[r] = peak_of(total[r], peak[r], n, [&](Index i) {
          const A* by = weight(first + r);
          return value(x + (first + r) * n + i) * (by ? by[i] : A(1));
        });
    }
    f(first, count, total, peak);
  }
}

// The same down the columns of a matrix, each row weighted by its value where there are any.
template <class T, bool kPeak, class F>
inline void read_columns(const Matrix<T>& m, const Acc<T>* weight, const F& f) {
  using A = Acc<T>;
  constexpr Index kGroup = 8;
  const Index room = (m.columns / kLanes<A> + 1) * kLanes<A>;
  std::vector<A> total(room), part(room), peak(room, -std::numeric_limits<A>::infinity());
  const auto add = [&](Index i, auto count) {
    each_slot<A>(m.columns, [&](const auto& slice, Index at) {
      Vec<A> sums = widen(part.data() + at), top = widen(peak.data() + at);
      for (Index r = i; r < i + count; ++r) {
        __builtin_prefetch(m.x + (r + kGroup) * m.stride + slice.at);
        Vec<A> v = load(m.x + r * m.stride, slice);
        if (weight) v *= weight[r];
        sums += v;
        if constexpr (kPeak) top = Larger{}(v, top);
      }
      narrow(part.data() + at, sums);
      if constexpr (kPeak) narrow(peak.data() + at, top);
    });
  };
  for (Index chunk = 0; chunk < m.rows; chunk += kChunk) {
    const Index end = std::min(m.rows, chunk + kChunk);
    Index i = chunk;
    for (; i + kGroup <= end; i += kGroup) add(i, std::integral_constant<Index, kGroup>{});
    if (i < end) add(i, end - i);
    for (Index j = 0; j < room; ++j) total[j] += part[j], part[j] = 0;
  }
  for (Index j = 0; j < m.columns; ++j) {
    const A sum = total[slot<A>(j, m.columns)], top = peak[slot<A>(j, m.columns)];
    f(j, sum, peak_of(sum, top, kPeak ? m.rows : 0, [&](Index i) {
        return value(m.x + i * m.stride + j) * (weight ? weight[i] : A(1));
      }));
  }
}

// Columns to read at once: all that stay in the first cache, but work for all threads.
inline Index read_width(const Images& s, Index columns) {
  constexpr Index kMost = 4096;
  const Index wanted = s.threads == 1 ? kMost : columns * s.B / (2 * s.threads) / 16 * 16;
  return std::min({columns, kMost, std::max<Index>(32, wanted)});
}

// Mean, and where asked largest value, of each channel.
template <class T, bool kPeak>
void read_positions(const T* x, const Images& s, Acc<T>* mean, Acc<T>* peak) {
  using A = Acc<T>;
  const Index N = s.N();
  if (!s.last) {
    constexpr Index lanes = kLanes<A>;
    const Index planes = s.B * s.C;
    return parallel((planes + lanes - 1) / lanes, lanes * N, [&](Index i) {
      const Index plane = i * lanes;
      read_rows<T, kPeak>(
          x + plane * N, std::min(lanes, planes - plane), N, [](Index) { return nullptr; },
          [&](Index, Index count, Vec<A> sums, Vec<A> peaks) {
            store(mean + plane, sums / A(N), Slice<A>{0, 0, count});
            if (kPeak) store(peak + plane, peaks, Slice<A>{0, 0, count});
          });
    });
  }
  const Index width = read_width(s, s.C), tiles = (s.C + width - 1) / width;
  parallel(s.B * tiles, N * width, [&](Index i) {
    const Index b = i / tiles, c = i % tiles * width, n = std::min(width, s.C - c);
    read_columns<T, kPeak>({x + b * N * s.C + c, N, n, s.C}, nullptr, [&](Index j, A total, A top) {
      mean[b * s.C + c + j] = total / N;
      if (kPeak) peak[b * s.C + c + j] = top;
    });
  });
}

// Largest value and mean over the channels of the map times a gate, (B, 2, H, W).
template <class T>
void read_channels(const T* x, const Images& s, const Acc<T>* gate, Acc<T>* to) {
  using A = Acc<T>;
  const Index N = s.N();
  if (s.last) {
    constexpr Index lanes = kLanes<A>;
    const Index tiles = (N + lanes - 1) / lanes;
    return parallel(s.B * tiles, lanes * s.C, [&](Index i) {
      const Index b = i / tiles, p = i % tiles * lanes;
      A* peak = to + b * 2 * N + p;
      read_rows<T, true>(
          x + (b * N + p) * s.C, std::min(lanes, N - p), s.C,
          [&](Index) { return gate + b * s.C; },
          [&](Index, Index count, Vec<A> sums, Vec<A> peaks) {
            store(peak, peaks, Slice<A>{0, 0, count});
            store(peak + N, sums / A(s.C), Slice<A>{0, 0, count});
          });
    });
  }
  const Index width = read_width(s, N), tiles = (N + width - 1) / width;
  parallel(s.B * tiles, s.C * width, [&](Index i) {
    const Index b = i / tiles, p = i % tiles * width, n = std::min(width, N - p);
    A* peak = to + b * 2 * N + p;
    read_columns<T, true>({x + b * s.C * N + p, s.C, n, N}, gate + b * s.C,
                          [&](Index j, A total, A top) { peak[j] = top, peak[N + j] = total / s.C; });
  });
}

// The map times gates of its channels, and of its positions where they are given.
template <class T>
void weigh(const T* x, const Shape& s, const Acc<T>* channel, const Acc<T>* spatial, T* y) {
  using A = Acc<T>;
  constexpr Index kRows = 16;
  const Index rows = s.last ? s.N() : s.C, n = s.last ? s.C : s.N();
  const Index tiles = (rows + kRows - 1) / kRows;
  parallel(s.B * tiles, kRows * n, [&](Index tile) {
    const Index b = tile / tiles, first = tile % tiles * kRows;
    const A* each = s.last ? spatial : channel;
    const A* along = s.last ? channel + b * s.C : spatial ? spatial + b * s.N() : nullptr;
    for (Index row = b * rows + first; row < b * rows + std::min(rows, first + kRows); ++row) {
      const Vec<A> fixed = splat(each ? each[row] : A(1));
      const T* from = x + row * n;
      T* to = y + row * n;
      if (along)
        each_slice<A>(n, [&](const auto& i) { store(to, load(from, i) * (fixed * load(along, i)), i); });
      else
        each_slice<A>(n, [&](const auto& i) { store(to, load(from, i) * fixed, i); });
    }
  });
}

}  // namespace foveate
