// Statistics and dot products along each row and each column of every channel, in one read.
#include "fold.h"
#include "reduce.h"
#include "strip.h"

namespace foveate {
namespace {

template <class A>
struct Peaks {
  A* value;
  int32_t* at;
};

// What the sums are of, and where they go: x * other, weighted by a gate of the other direction.
template <class T>
struct Reading {
  const T *x, *other;
  const Acc<T>*row_gate, *column_gate;
  Acc<T>*rows, *columns;
  Acc<T> row_scale, column_scale;
  Peaks<Acc<T>> row_peaks, column_peaks;
};

template <class A>
inline void raise(const Peaks<A>& to, Index first, const Slice<A>& s, Vec<A> v, Index here) {
  Vec<A> top = load(to.value + first, s);
  const auto better = displaces<A>(v, top);
  store(to.value + first, better ? v : top, s);
  Vec<Lane<A>> at = load_index(to.at + first, s);
  at = better ? splat<Lane<A>>(here) : at;
  for (Index l = 0; l < s.count; ++l) to.at[first + s.at + l] = at[l];
}

// Adds v to the sums at `to`. Lanes that an overlapping slice repeats are left alone.
template <class A, class S>
inline void add(A* to, const S& s, Vec<A> v) {
  store(to, load(to, s) + masked<A>(v, s, A(0)), s);
}

template <class A>
inline void start(A* sums, const Peaks<A>& peaks, Index n) {
  std::fill_n(sums, n, A(0));
  if (!peaks.value) return;
  std::fill_n(peaks.value, n, -std::numeric_limits<A>::infinity());
  std::fill_n(peaks.at, n, 0);
}

template <class A>
inline void finish(A* sums, A scale, Index n) {
  for (Index i = 0; i < n; ++i) sums[i] *= scale;
}

// Sums and peaks of a plane of rows shorter than a vector. Those of its columns stay in one; rows are
// read with what lies behind them, as long as that is still the map.
template <class T>
void strip_narrow_plane(const Reading<T>& f, const Shape& s, Index plane) {
  using A = Acc<T>;
  constexpr Index lanes = kLanes<A>;
  const Index file = plane * s.W, end = s.B * s.C * s.N();
  const Slice<A> row{0, 0, s.W};
  Vec<A> columns = {}, top = splat(-std::numeric_limits<A>::infinity());
  Vec<Lane<A>> at = {};
  for (Index h = 0; h < s.H; ++h) {
    const Index line = plane * s.H + h, first = line * s.W;
    Vec<A> v = first + lanes <= end ? widen(f.x + first) : load(f.x + first, row);
    const Vec<A> inside = masked<A>(v, row, A(0));
    columns += inside;
    f.rows[line] = sum<A>(inside) * f.row_scale;
    v = masked<A>(v, row, -std::numeric_limits<A>::infinity());
    const auto better = displaces<A>(v, top);
    top = better ? v : top;
    at = better ? splat<Lane<A>>(h) : at;
    const auto peak = across<A>(v, iota<A>());
    f.row_peaks.value[line] = peak.value, f.row_peaks.at[line] = peak.at;
  }
  store(f.columns + file, columns * f.column_scale, row);
  store(f.column_peaks.value + file, top, row);
  for (Index w = 0; w < s.W; ++w) f.column_peaks.at[file + w] = at[w];
}

template <class T, bool kPeaks>
void strip_plane(const Reading<T>& f, const Shape& s, Index plane) {
  using A = Acc<T>;
  const Index file = plane * s.W;
  start<A>(f.columns + file, {kPeaks ? f.column_peaks.value + file : nullptr, f.column_peaks.at + file},
           s.W);
  for (Index h = 0; h < s.H; ++h) {
    const Index line = plane * s.H + h, first = line * s.W;
    const A gate = f.row_gate ? f.row_gate[line] : A(1);
    Vec<A> total = {};
    each_slice<A>(s.W, [&](const auto& slice) {
      Vec<A> v = load(f.x + first, slice);
      if (f.other) v *= load(f.other + first, slice);
      total += masked<A>(f.column_gate ? v * load(f.column_gate + file, slice) : v, slice, A(0));
      add<A>(f.columns + file, slice, v * gate);
      if constexpr (kPeaks) raise<A>(f.column_peaks, file, slice, v, h);
    });
    f.rows[line] = sum<A>(total) * f.row_scale;
    if constexpr (kPeaks) {
      Peak<A> top;
      reduce_row<T, true>(f.x + first, nullptr, s.W, &top);
      f.row_peaks.value[line] = top.value, f.row_peaks.at[line] = top.at;
    }
  }
  finish(f.columns + file, f.column_scale, s.W);
}

// Planes whose rows are no more than kParts vectors, without peaks. The sums of the columns stay in
// registers; those of the rows are folded a vector of them at a time, also across planes.
template <class T, int kParts, bool kDot>
void strip_lines(const Reading<T>& f, const Shape& s, Index plane, Index end) {
  using A = Acc<T>;
  constexpr Index lanes = kLanes<A>;
  const Index values = s.B * s.C * s.N();
  const Slice<A> tail = kParts == 1 ? Slice<A>{0, 0, s.W}
                                    : Slice<A>{s.W - lanes, kParts * lanes - s.W, lanes};
  const auto each_part = [&](const auto& g) {
    for (int k = 0; k < kParts - 1; ++k) g(k, Whole<A>{{k * lanes}});
    g(kParts - 1, tail);
  };
  Vec<A> totals[lanes] = {};
  Index to = plane * s.H, many = 0;
  const auto put = [&] {
    store(f.rows + to, fold_each<A>(totals, Add{}) * f.row_scale, Slice<A>{0, 0, many});
    to += std::exchange(many, 0);
  };
  for (; plane < end; ++plane) {
    const Index file = plane * s.W;
    Vec<A> columns[kParts] = {}, weights[kParts];
    each_part([&](int k, const auto& part) {
      weights[k] = kDot && f.column_gate ? load(f.column_gate + file, part) : splat(A(1));
    });
    for (Index line = plane * s.H; line < (plane + 1) * s.H; ++line) {
      // A short row is read with what lies behind it, as long as that is still the map.
      const bool whole = kParts > 1 || line * s.W + lanes <= values;
      const auto read = [&](const T* p, const auto& part) {
        return whole ? widen(p + line * s.W + part.at) : load(p + line * s.W, part);
      };
      const A gate = kDot && f.row_gate ? f.row_gate[line] : A(1);
      Vec<A> total = {};
      each_part([&](int k, const auto& part) {
        Vec<A> v = read(f.x, part);
        if constexpr (kDot) v *= read(f.other, part);
        // Behind the product: an infinite gate times a zero would be no number.
        columns[k] += masked<A>(kDot ? v * gate : v, part, A(0));
        total += masked<A>(kDot ? v * weights[k] : v, part, A(0));
      });
      totals[many] = total;
      if (++many == lanes) put();
    }
    each_part([&](int k, const auto& part) {
      A* sums = f.columns + file;
      const Slice<A> before{0, 0, part.skip};  // lanes that the part ahead has written
      const Vec<A> own = columns[k] * f.column_scale;
      store(sums, part.skip ? own + masked<A>(load(sums, part), before, A(0)) : own, part);
    });
  }
  if (many) put();
}

// The number of vectors in a row as a constant, for f. Whether there are few enough of them.
template <class A, int kParts = 1, class F>
inline bool with_parts(Index n, const F& f) {
  if constexpr (kParts > 4) {
    return false;
  } else {
    if (n > kParts * kLanes<A>) return with_parts<A, kParts + 1>(n, f);
    f(std::integral_constant<int, kParts>{});
    return true;
  }
}

template <class T>
bool strip_short_rows(const Reading<T>& f, const Shape& s) {
  return with_parts<Acc<T>>(s.W, [&](auto parts) {
    each_planes(s, [&](Index first, Index end) {
      if (f.other) strip_lines<T, parts, true>(f, s, first, end);
      else strip_lines<T, parts, false>(f, s, first, end);
    });
  });
}

// The same, sums and peaks without gates, for n adjacent channels of one image, from channel c on.
template <class T>
void strip_channels(const Reading<T>& f, const Shape& s, Index b, Index c, Index n) {
  using A = Acc<T>;
  const auto part = [](const Peaks<A>& p, Index i) {
    return Peaks<A>{p.value + i, p.at + i};
  };
  for (Index w = 0; w < s.W; ++w) {
    const Index file = (b * s.W + w) * s.C + c;
    start(f.columns + file, part(f.column_peaks, file), n);
  }
  for (Index h = 0; h < s.H; ++h) {
    const Index line = (b * s.H + h) * s.C + c;
    start(f.rows + line, part(f.row_peaks, line), n);
    for (Index w = 0; w < s.W; ++w) {
      const Index file = (b * s.W + w) * s.C + c, at = ((b * s.H + h) * s.W + w) * s.C + c;
      each_slice<A>(n, [&](const auto& slice) {
        const Vec<A> v = load(f.x + at, slice);
        add<A>(f.rows + line, slice, v);
        add<A>(f.columns + file, slice, v);
        raise<A>(f.row_peaks, line, slice, v, w);
        raise<A>(f.column_peaks, file, slice, v, h);
      });
    }
    finish(f.rows + line, f.row_scale, n);
  }
  for (Index w = 0; w < s.W; ++w)
    finish(f.columns + (b * s.W + w) * s.C + c, f.column_scale, n);
}

// The sums of adjacent channels, without peaks, four rows at once: each column's sums are then read
// and written once for four values.
template <class T, bool kDot>
void strip_tile(const Reading<T>& f, const Shape& s, Index b, Index c, Index n) {
  using A = Acc<T>;
  constexpr Index kMany = 4, kAhead = 1024 / sizeof(T);
  Room<A> rows(n, kMany), columns(n, s.W);
  const auto read = [&](Index first, auto count) {
    const Index line = (b * s.H + first) * s.C + c;
    for (Index w = 0; w < s.W; ++w) {
      const Index file = (b * s.W + w) * s.C + c;
      A* column = columns.data() + w * columns.stride;
      each_slot<A>(n, [&](const auto& slice, Index slot) {
        const Vec<A> weight = kDot && f.column_gate ? load(f.column_gate + file, slice) : splat(A(1));
        Vec<A> total = widen(column + slot);
        for (Index h = 0; h < count; ++h) {
          const Index at = ((b * s.H + first + h) * s.W + w) * s.C + c;
          __builtin_prefetch(f.x + at + kAhead + slice.at);
          Vec<A> v = load(f.x + at, slice);
          if constexpr (kDot) {
            __builtin_prefetch(f.other + at + kAhead + slice.at);
            v *= load(f.other + at, slice);
          }
          const Vec<A> gate =
              kDot && f.row_gate ? load(f.row_gate + line + h * s.C, slice) : splat(A(1));
          A* row = rows.data() + h * rows.stride + slot;
          narrow(row, widen(row) + (kDot ? v * weight : v));
          total += kDot ? v * gate : v;
        }
        narrow(column + slot, total);
      });
    }
    for (Index h = 0; h < count; ++h)
      each_slot<A>(n, [&](const auto& slice, Index slot) {
        const Vec<A> sums = widen(rows.data() + h * rows.stride + slot);
        store(f.rows + line + h * s.C, sums * f.row_scale, slice);
      });
    std::fill_n(rows.data(), kMany * rows.stride, A(0));
  };
  Index h = 0;
  for (; h + kMany <= s.H; h += kMany) read(h, std::integral_constant<Index, kMany>{});
  if (h < s.H) read(h, s.H - h);
  for (Index w = 0; w < s.W; ++w)
    each_slot<A>(n, [&](const auto& slice, Index slot) {
      const Vec<A> sums = widen(columns.data() + w * columns.stride + slot);
      store(f.columns + (b * s.W + w) * s.C + c, sums * f.column_scale, slice);
    });
}

template <class T, bool kPeaks>
void strip_planes(const Reading<T>& f, const Shape& s) {
  if (!kPeaks && strip_short_rows(f, s)) return;
  const bool narrow = kPeaks && s.W < kLanes<Acc<T>>;
  parallel(s.B * s.C, s.N(), [&](Index plane) {
    if (narrow) strip_narrow_plane<T>(f, s, plane);
    else strip_plane<T, kPeaks>(f, s, plane);
  });
}

template <class T, bool kPeaks>
void strips(const Reading<T>& f, const Shape& s) {
  if (!s.last) return strip_planes<T, kPeaks>(f, s);
  constexpr Index kSums = 1 << 16;  // of columns, to be kept in the second cache
  const Index most = kPeaks ? 64 : std::max<Index>(64, kSums / s.W / 16 * 16);
  const Index width = tile_width(s.B, s.C, most), tiles = (s.C + width - 1) / width;
  parallel(s.B * tiles, s.N() * width, [&](Index i) {
    const Index c = i % tiles * width, n = std::min(width, s.C - c);
    if constexpr (kPeaks) strip_channels<T>(f, s, i / tiles, c, n);
    else if (f.other) strip_tile<T, true>(f, s, i / tiles, c, n);
    else strip_tile<T, false>(f, s, i / tiles, c, n);
  });
}

}  // namespace

void strip_pool(Tensor x, Tensor rows, Tensor columns, Optional rows_peak, Optional rows_at,
                Optional columns_peak, Optional columns_at) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Shape s = shape_of(x);
    const Reading<T> f{in<T>(x),
                      nullptr,
                      nullptr,
                      nullptr,
                      out<A>(rows),
                      out<A>(columns),
                      A(1) / s.W,
                      A(1) / s.H,
                      {out<A>(rows_peak), out<int32_t>(rows_at)},
                      {out<A>(columns_peak), out<int32_t>(columns_at)}};
    rows_peak ? strips<T, true>(f, s) : strips<T, false>(f, s);
  });
}

void strip_dot(Tensor x, Tensor other, Optional row_gate, Optional column_gate, Tensor rows,
               Tensor columns) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    strips<T, false>({in<T>(x),
                      in<T>(other),
                      in<A>(row_gate),
                      in<A>(column_gate),
                      out<A>(rows),
                      out<A>(columns),
                      1,
                      1,
                      {},
                      {}},
                     shape_of(x));
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "strip_pool(Tensor x, Tensor(a!) rows, Tensor(b!) columns, Tensor(c!)? rows_peak, "
      "Tensor(d!)? rows_at, Tensor(e!)? columns_peak, Tensor(f!)? columns_at) -> ()");
  m.def(
      "strip_dot(Tensor x, Tensor other, Tensor? row_gate, Tensor? column_gate, Tensor(a!) rows, "
      "Tensor(b!) columns) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("strip_pool", TORCH_BOX(&foveate::strip_pool));
  m.impl("strip_dot", TORCH_BOX(&foveate::strip_dot));
}
