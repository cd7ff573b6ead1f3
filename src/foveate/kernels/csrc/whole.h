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
  // Where an element is.
  Index index(Index b, Index c, Index p) const {
    return last ? (b * N() + p) * C + c : (b * C + c) * N() + p;
  }
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

// Rows read at once down the columns of one map; those to come are fetched meanwhile.
constexpr Index kAhead = 8;

// Calls f(first row, count) for a few rows at a time, most counts being constants, and `end` after
// each kChunk of them, with whether it is time to put away the sums of so many of those.
template <Index few, class F, class G>
inline void each_chunk(Index rows, const F& f, const G& end) {
  for (Index chunk = 0; chunk < rows; chunk += kChunk) {
    const Index last = std::min(rows, chunk + kChunk);
    Index i = chunk;
    for (; i + few <= last; i += few) f(i, std::integral_constant<Index, few>{});
    if (i < last) f(i, last - i);
    end(last == rows || chunk / kChunk % kChunk == kChunk - 1);
  }
}

// What is read along with the sum: nothing, the largest value, or that and its first place.
enum Find { kNothing, kPeak, kPlace };

// The largest of values of which `each(i)` is one, and `peak` the largest that is a number. If one
// is no number neither is their sum, so that it is seldom that they must be looked through.
template <class A, class F>
inline void mend(A total, Index n, const F& each, A& peak, int32_t& at) {
  if (total == total) return;
  for (Index i = 0; i < n; ++i)
    if (const A v = each(i); v != v) {
      peak = v, at = i;
      return;
    }
}

template <class A>
struct Found {
  Vec<A> sum, peak;
  int32_t at[kLanes<A>];
};

// What is read from each of at most a vector of rows, weighted where there are weights.
// Accumulators take `turns`: no more than one in rows too short for it to matter.
template <class T, Find find, Index turns>
inline Found<Acc<T>> read_rows(const T* x, Index rows, Index n, const Acc<T>* weight) {
  using A = Acc<T>;
  constexpr Index lanes = kLanes<A>;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  Vec<A> sums[lanes] = {}, peaks[lanes] = {}, tops[lanes][turns];
  Vec<Lane<A>> places[lanes][turns];
  for (Index r = 0; r < rows; ++r) {
    const T* row = x + r * n;
    Vec<A> part[kTurns] = {}, top[turns];
    Vec<Lane<A>> place[turns] = {};
    for (Index t = 0; t < turns; ++t) top[t] = splat(lowest);
    const auto read = [&](const auto& s, auto next) {
      constexpr Index turn = next % turns;
      Vec<A> v = load(row, s);
      if (weight) v *= load(weight, s);
      part[turn] += masked<A>(v, s, A(0));
      if constexpr (find == kNothing) return;
      v = masked<A>(v, s, lowest);
      if constexpr (find == kPlace) {
        const auto better = v > top[turn];
        place[turn] = better ? iota<A>() + Lane<A>(s.at) : place[turn];
      }
      top[turn] = Larger{}(v, top[turn]);
    };
    each_part<A>(n, read, [&] { put_away<A>(part, sums[r]); });
    if constexpr (find != kNothing)
      for (Index t = 0; t < turns; ++t) peaks[r] = t ? Larger{}(peaks[r], top[t]) : top[t];
    if constexpr (find == kPlace)
      for (Index t = 0; t < turns; ++t) tops[r][t] = top[t], places[r][t] = place[t];
  }
  Found<A> found{fold_each<A>(sums, Add{}), {}, {}};
  if constexpr (find == kNothing) return found;
  found.peak = fold_each<A>(peaks, Larger{});
  if constexpr (find == kPlace) {
    Vec<Lane<A>> first[lanes] = {};
    for (Index r = 0; r < rows; ++r) {
      const Vec<A> highest = splat(found.peak[r]);
      first[r] = splat(std::numeric_limits<Lane<A>>::max());
      for (Index t = 0; t < turns; ++t)
        first[r] = Smaller{}(tops[r][t] == highest ? places[r][t] : first[r], first[r]);
    }
    const auto at = fold_each<Lane<A>>(first, Smaller{});
    // Lanes of nothing but the lowest value have no place of their own.
    for (Index r = 0; r < rows; ++r) found.at[r] = found.peak[r] == lowest ? 0 : at[r];
  }
  for (Index r = 0; r < rows; ++r) {
    A peak = found.peak[r];
    mend(found.sum[r], n, [&](Index i) {
      return value(x + r * n + i) * (weight ? weight[i] : A(1));
    }, peak, found.at[r]);
    found.peak[r] = peak;
  }
  return found;
}

template <class T, Find find>
inline Found<Acc<T>> read_rows(const T* x, Index rows, Index n, const Acc<T>* weight) {
  if (n < 2 * kTurns * kLanes<Acc<T>>) return read_rows<T, find, 1>(x, rows, n, weight);
  return read_rows<T, find, kTurns>(x, rows, n, weight);
}

// The same down the columns of a matrix, each row weighted by one value: f(column, sum, peak, at).
template <class T, Find find, class F>
inline void read_columns(const Matrix<T>& m, const Acc<T>* weight, const F& f) {
  using A = Acc<T>;
  Room<A> total(m.columns), some(m.columns), part(m.columns);
  Room<A> peak(m.columns, 1, -std::numeric_limits<A>::infinity());
  std::vector<Lane<A>> place(find == kPlace ? total.stride : 0);
  const Index ahead = rows_ahead<T>(kAhead, m.stride);
  const auto add = [&](Index i, auto count) {
    each_slot<A>(m.columns, [&](const auto& slice, Index at) {
      Vec<A> sums = widen(part.data() + at), top = widen(peak.data() + at);
      Vec<Lane<A>> first = {};
      if constexpr (find == kPlace) std::memcpy(&first, place.data() + at, sizeof first);
      for (Index r = i; r < i + count; ++r) {
        __builtin_prefetch(m.x + (r + ahead) * m.stride + slice.at);
        Vec<A> v = load(m.x + r * m.stride, slice);
        if (weight) v *= weight[r];
        sums += v;
        if constexpr (find == kPlace) first = v > top ? splat<Lane<A>>(r) : first;
        if constexpr (find != kNothing) top = Larger{}(v, top);
      }
      narrow(part.data() + at, sums);
      if constexpr (find != kNothing) narrow(peak.data() + at, top);
      if constexpr (find == kPlace) std::memcpy(place.data() + at, &first, sizeof first);
    });
  };
  each_chunk<kAhead>(m.rows, add, [&](bool many) {
    for (Index j = 0; j < total.stride; ++j) some[j] += part[j], part[j] = 0;
    for (Index j = 0; many && j < total.stride; ++j) total[j] += some[j], some[j] = 0;
  });
  for (Index j = 0; j < m.columns; ++j) {
    const Index from = slot<A>(j, m.columns);
    A top = peak[from];
    int32_t at = find == kPlace ? place[from] : 0;
    if constexpr (find != kNothing)
      mend(total[from], m.rows, [&](Index i) {
        return value(m.x + i * m.stride + j) * (weight ? weight[i] : A(1));
      }, top, at);
    f(j, total[from], top, at);
  }
}

// Columns to read at once: all that stay in the first cache, but work for all threads.
inline Index read_width(const Images& s, Index columns) {
  constexpr Index kMost = 4096;
  const Index wanted = s.threads == 1 ? kMost : columns * s.B / (2 * s.threads) / 16 * 16;
  return std::min({columns, kMost, std::max<Index>(32, wanted)});
}

// Of each channel the mean, and where asked the largest value and its place: (B, 1 or 2, C).
template <class T, Find find>
void read_positions(const T* x, const Images& s, Acc<T>* to, int32_t* places) {
  using A = Acc<T>;
  constexpr Index lanes = kLanes<A>, each = find == kNothing ? 1 : 2;
  const Index N = s.N(), width = s.last ? read_width(s, s.C) : lanes;
  const Index tiles = (s.C + width - 1) / width;
  parallel(s.B * tiles, N * width, [&](Index i) {
    const Index b = i / tiles, c = i % tiles * width, n = std::min(width, s.C - c);
    A *mean = to + b * each * s.C + c, *peak = mean + s.C;
    int32_t* at = places + b * s.C + c;
    if (s.last)
      return read_columns<T, find>(
          {x + b * N * s.C + c, N, n, s.C}, nullptr, [&](Index j, A total, A top, int32_t where) {
            mean[j] = total / N;
            if constexpr (find != kNothing) peak[j] = top;
            if constexpr (find == kPlace) at[j] = where;
          });
    const auto found = read_rows<T, find>(x + (b * s.C + c) * N, n, N, nullptr);
    store(mean, found.sum / A(N), Slice<A>{0, 0, n});
    if constexpr (find != kNothing) store(peak, found.peak, Slice<A>{0, 0, n});
    if constexpr (find == kPlace) std::copy_n(found.at, n, at);
  });
}

// Largest value, and where asked its place, and mean over the channels of the map times a gate:
// (B, 2, H, W).
template <class T, Find find>
void read_channels(const T* x, const Images& s, const Acc<T>* gate, Acc<T>* to, int32_t* places) {
  using A = Acc<T>;
  const Index N = s.N(), width = s.last ? kLanes<A> : read_width(s, N);
  const Index tiles = (N + width - 1) / width;
  parallel(s.B * tiles, s.C * width, [&](Index i) {
    const Index b = i / tiles, p = i % tiles * width, n = std::min(width, N - p);
    A *peak = to + b * 2 * N + p, *mean = peak + N;
    int32_t* at = places + b * N + p;
    if (!s.last)
      return read_columns<T, find>(
          {x + b * s.C * N + p, s.C, n, N}, gate + b * s.C,
          [&](Index j, A total, A top, int32_t where) {
            peak[j] = top, mean[j] = total / s.C;
            if constexpr (find == kPlace) at[j] = where;
          });
    const auto found = read_rows<T, find>(x + (b * N + p) * s.C, n, s.C, gate + b * s.C);
    store(peak, found.peak, Slice<A>{0, 0, n});
    store(mean, found.sum / A(s.C), Slice<A>{0, 0, n});
    if constexpr (find == kPlace) std::copy_n(found.at, n, at);
  });
}

// What a residual block makes of a branch: branch + shortcut, then a ReLU. The branch is rounded
// first, as it is where it is stored before; two operations in one instruction would round once.
template <class T>
struct Ending {
  const T* shortcut;
  Vec<Lane<Acc<T>>> kept = Vec<Lane<Acc<T>>>{} - 1;

  explicit Ending(const T* shortcut) : shortcut(shortcut) {
    asm volatile("" : "+m"(kept));  // all ones, which the compiler cannot know
  }

  template <class S>
  Vec<Acc<T>> operator()(Index at, Vec<Acc<T>> branch, const S& slice) const {
    using A = Acc<T>;
    if constexpr (std::is_same_v<T, A>) {
      branch = std::bit_cast<Vec<A>>(std::bit_cast<Vec<Lane<A>>>(branch) & kept);
    } else {
      T rounded[kLanes<A>];
      narrow(rounded, branch);
      branch = widen(rounded);
    }
    const Vec<A> sum = branch + load(shortcut + at, slice);
    return sum <= 0 ? Vec<A>{} : sum;
  }
};

// The map times gates of its channels, and of its positions where they are given; with a shortcut
// what a block ends in. `past`: write past the caches. y may be x.
template <class T>
void weigh(const T* x, const Shape& s, const Acc<T>* channel, const Acc<T>* spatial,
           const T* shortcut, T* y, bool past) {
  using A = Acc<T>;
  constexpr Index kRows = 16;
  const Index rows = s.last ? s.N() : s.C, n = s.last ? s.C : s.N();
  const Index tiles = (rows + kRows - 1) / kRows;
  const auto run = [&](const auto& write, const auto& end) {
    parallel(s.B * tiles, kRows * n, [&](Index tile) {
      const Index b = tile / tiles, first = tile % tiles * kRows;
      const A* each = s.last ? spatial : channel;
      const A* along = s.last ? channel + b * s.C : spatial ? spatial + b * s.N() : nullptr;
      for (Index row = b * rows + first; row < b * rows + std::min(rows, first + kRows); ++row) {
        const Vec<A> fixed = splat(each ? each[row] : A(1));
        const T* from = x + row * n;
        T* to = y + row * n;
        const auto put = [&](const auto& v, const auto& i) {
          auto made = end(row * n, v, i);
          // What the last vector of a row shares with the one before is written there already.
          if constexpr (!std::is_same_v<decltype(i), const Whole<A>&>)
            if (to == from) made = iota<A>() < Lane<A>(i.skip) ? load(to, i) : made;
          write(to, made, i);
        };
        if (along)
          each_slice<A>(n, [&](const auto& i) { put(load(from, i) * (fixed * load(along, i)), i); });
        else each_slice<A>(n, [&](const auto& i) { put(load(from, i) * fixed, i); });
      }
    }, finish_past);
  };
  writing(past, [&](const auto& write) {
    if (shortcut) run(write, Ending<T>(shortcut));
    else run(write, [](Index, const auto& v, const auto&) { return v; });
  });
}

}  // namespace foveate
