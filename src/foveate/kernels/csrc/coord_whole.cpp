// Coordinate attention whole: strips, layers and product in one call, and all gradients in another.
#include "coord.h"

namespace foveate {
namespace {

template <class T>
struct Product {
  const T* source;
  T* to;
  const Acc<T>*rows, *columns, *add_rows, *add_columns;
};

// source times the gates of one row of a channels_last map, plus what is added to rows and columns.
template <class T, bool kAdds, class F>
void weigh_row(const Product<T>& f, const Shape& s, Index row, const F& write) {
  using A = Acc<T>;
  const Index line = row * s.C, files = row / s.H * s.W * s.C;
  for (Index w = 0; w < s.W; ++w) {
    const Index at = (row * s.W + w) * s.C, file = files + w * s.C;
    each_slice<A>(s.C, [&](const auto& c) {
      Vec<A> v = load(f.source + at, c) * (load(f.rows + line, c) * load(f.columns + file, c));
      if constexpr (kAdds) v += load(f.add_rows + line, c) + load(f.add_columns + file, c);
      write(f.to + at, v, c);
    });
  }
}

// The same of one channel's plane of a contiguous map.
template <class T, bool kAdds, class F>
void weigh_plane(const Product<T>& f, const Shape& s, Index plane, const F& write) {
  using A = Acc<T>;
  const Index file = plane * s.W;
  for (Index line = plane * s.H; line < (plane + 1) * s.H; ++line) {
    const A gate = f.rows[line], add = kAdds ? f.add_rows[line] : A(0);
    each_slice<A>(s.W, [&](const auto& c) {
      Vec<A> v = load(f.source + line * s.W, c) * (gate * load(f.columns + file, c));
      if constexpr (kAdds) v += add + load(f.add_columns + file, c);
      write(f.to + line * s.W, v, c);
    });
  }
}

// The same for planes whose rows are shorter than a vector: what lies behind a row is read and written
// with it, to be written again with the next, up to the last of these planes.
template <class T, bool kAdds>
void weigh_narrow_planes(const Product<T>& f, const Shape& s, Index plane, Index end) {
  using A = Acc<T>;
  constexpr Index lanes = kLanes<A>;
  const Slice<A> row{0, 0, s.W};
  for (; plane < end; ++plane) {
    const Vec<A> column = load(f.columns + plane * s.W, row);
    const Vec<A> more = kAdds ? load(f.add_columns + plane * s.W, row) : Vec<A>{};
    for (Index line = plane * s.H; line < (plane + 1) * s.H; ++line) {
      const Index first = line * s.W;
      const bool whole = first + lanes <= end * s.N();
      Vec<A> v = whole ? widen(f.source + first) : load(f.source + first, row);
      v *= f.rows[line] * column;
      if constexpr (kAdds) v += f.add_rows[line] + more;
      if (whole) narrow(f.to + first, v);
      else store(f.to + first, v, row);
    }
  }
}

template <class T, bool kAdds>
void weigh_all(const Product<T>& f, const Shape& s) {
  if (!s.last && s.W < kLanes<Acc<T>>)
    return each_planes(s, [&](Index i, Index end) { weigh_narrow_planes<T, kAdds>(f, s, i, end); });
  writing(expect_output(f.to, s, s.last ? s.C : s.W), [&](const auto& write) {
    const auto each = [&](Index n, Index cost, const auto& weigh) {
      parallel(n, cost, [&](Index i) { weigh(f, s, i, write); }, finish_past);
    };
    using F = std::remove_cvref_t<decltype(write)>;
    if (s.last) each(s.B * s.H, s.W * s.C, weigh_row<T, kAdds, F>);
    else each(s.B * s.C, s.N(), weigh_plane<T, kAdds, F>);
  });
}

// to = source * gates + adds, in one pass.
void weigh(const Tensor& source, const Strips& gates, const std::optional<Strips>& adds,
           const Tensor& to) {
  dispatch(source, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    Product<T> f{in<T>(source), out<T>(to), in<A>(gates.rows), in<A>(gates.columns), nullptr, nullptr};
    if (adds) f.add_rows = in<A>(adds->rows), f.add_columns = in<A>(adds->columns);
    adds ? weigh_all<T, true>(f, shape_of(source)) : weigh_all<T, false>(f, shape_of(source));
  });
}

inline Strips like(const Strips& s) {
  return {torch::stable::empty_like(s.rows), torch::stable::empty_like(s.columns)};
}

}  // namespace

void coord_forward(Tensor x, Tensor w1, Optional b1, Optional mean, Optional var, Optional weight,
                   Optional bias, double eps, Tensor wh, Optional bh, Tensor ww, Optional bw,
                   Optional strength, Tensor rows, Tensor columns, Tensor row_gates,
                   Tensor column_gates, Tensor values, Tensor to) {
  const CoordLayers of{w1, b1, weight, bias, weight && !mean, wh, bh, ww, bw, strength};
  const Strips strips{rows, columns}, gates{row_gates, column_gates};
  strip_pool(x, rows, columns, {}, {}, {}, {});
  coord_gates(strips, shape_of(x).last, of, mean, var, eps, gates, values);
  weigh(x, coord_acting(gates, strength), {}, to);
}

void coord_backward(Tensor x, Tensor grad, Tensor rows, Tensor columns, Tensor row_gates,
                    Tensor column_gates, Tensor values, Tensor w1, Optional weight, Optional bias,
                    bool batch, Tensor wh, Tensor ww, Optional strength, Optional of_x,
                    Tensor of_parameters) {
  const CoordLayers of{w1, {}, weight, bias, batch, wh, {}, ww, {}, strength};
  const Strips strips{rows, columns}, gates{row_gates, column_gates}, dots = like(strips);
  const Strips acting = coord_acting(gates, strength);
  strip_dot(x, grad, acting.rows, acting.columns, dots.rows, dots.columns);
  const std::optional<Strips> adds = of_x ? std::optional(like(strips)) : std::nullopt;
  coord_gradients(strips, gates, dots, shape_of(x).last, of, values, adds, of_parameters);
  if (of_x) weigh(grad, acting, adds, *of_x);
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "coord_forward(Tensor x, Tensor w1, Tensor? b1, Tensor? mean, Tensor? var, Tensor? weight, "
      "Tensor? bias, float eps, Tensor wh, Tensor? bh, Tensor ww, Tensor? bw, Tensor? strength, "
      "Tensor(a!) rows, Tensor(b!) columns, Tensor(c!) row_gates, Tensor(d!) column_gates, "
      "Tensor(e!) values, Tensor(f!) to) -> ()");
  m.def(
      "coord_backward(Tensor x, Tensor grad, Tensor rows, Tensor columns, Tensor row_gates, "
      "Tensor column_gates, Tensor values, Tensor w1, Tensor? weight, Tensor? bias, bool batch, "
      "Tensor wh, Tensor ww, Tensor? strength, Tensor(a!)? of_x, Tensor(b!) of_parameters) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("coord_forward", TORCH_BOX(&foveate::coord_forward));
  m.impl("coord_backward", TORCH_BOX(&foveate::coord_backward));
}
