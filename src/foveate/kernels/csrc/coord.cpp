// The layers of coordinate attention, between the reading of the strips and the weighing by gates.
#include <cmath>
#include <utility>

#include "layers.h"
#include "product.h"
#include "reduce.h"

namespace foveate {
namespace {

// Means of one direction of a map, or what belongs to them: (B, side, C) where channels are last,
// else (B, C, side).
struct Strip {
  Index B, C, side;
  bool last;
  Index rows() const { return B * side; }
};

// With a row of channels for each strip.
template <class A>
const A* as_rows(const A* p, const Strip& s, std::vector<A>& room) {
  if (s.last) return p;
  room.resize(s.rows() * s.C);
  swap_sides(p, s.B, s.C, s.side, room.data());
  return room.data();
}

// What is kept: (B (H + W), width) before the normalisation, whose mean, 1 / deviation and unbiased
// variance follow.
template <class A>
struct Kept {
  A *inner, *mean, *scale, *variance;
  Kept(const Tensor& values, Index rows, Index width)
      : inner(out<A>(values)),
        mean(inner + rows * width),
        scale(mean + width),
        variance(scale + width) {}
};

template <class T>
struct Norm {
  std::vector<Acc<T>> weight, bias;
  Norm(const Optional& scale, const Optional& shift, Index width) : weight(width, 1), bias(width) {
    for (Index k = 0; scale && k < width; ++k)
      weight[k] = value(in<T>(*scale) + k), bias[k] = value(in<T>(*shift) + k);
  }
};

template <class A>
void statistics(const Kept<A>& to, Index rows, Index width, A eps) {
  for (Index k = 0; k < width; ++k) to.mean[k] = to.variance[k] = 0;
  for (Index r = 0; r < rows; ++r)
    for (Index k = 0; k < width; ++k) to.mean[k] += to.inner[r * width + k];
  for (Index k = 0; k < width; ++k) to.mean[k] /= rows;
  for (Index r = 0; r < rows; ++r)
    for (Index k = 0; k < width; ++k) {
      const A d = to.inner[r * width + k] - to.mean[k];
      to.variance[k] += d * d;
    }
  for (Index k = 0; k < width; ++k) {
    to.scale[k] = 1 / std::sqrt(to.variance[k] / rows + eps);
    to.variance[k] /= rows - 1;
  }
}

// Calls f(i, normalised value, that as it enters the nonlinearity) for each value.
template <class T, class F>
void each_inner(const Kept<Acc<T>>& kept, const Norm<T>& norm, Index rows, Index width,
                const F& f) {
  using A = Acc<T>;
  for (Index r = 0; r < rows; ++r)
    for (Index k = 0; k < width; ++k) {
      const A unit = (kept.inner[r * width + k] - kept.mean[k]) * kept.scale[k];
      f(r * width + k, k, unit, unit * norm.weight[k] + norm.bias[k]);
    }
}

template <class A>
inline A hardswish(A v) {
  return v * std::min(std::max(v + 3, A(0)), A(6)) / 6;
}

template <class A>
inline A hardswish_slope(A v) {
  return v < -3 ? A(0) : v <= 3 ? v / 3 + A(0.5) : A(1);
}

template <class T>
std::vector<Acc<T>> activated(const Kept<Acc<T>>& kept, const Norm<T>& norm, Index rows,
                              Index width) {
  std::vector<Acc<T>> found(rows * width);
  each_inner<T>(kept, norm, rows, width,
                [&](Index i, Index, Acc<T>, Acc<T> v) { found[i] = v == v ? hardswish(v) : v; });
  return found;
}

// The weight (channels, width) of a layer with its channels last.
template <class T>
std::vector<Acc<T>> channels_last(const Tensor& weight) {
  std::vector<Acc<T>> found(weight.numel());
  swap_sides(in<T>(weight), 1, weight.size(0), weight.size(1), found.data());
  return found;
}

}  // namespace

void coord_layers(Tensor rows, Tensor columns, bool last, Tensor w1, Optional b1, Optional mean,
                  Optional var, Optional weight, Optional bias, double eps, Tensor wh, Optional bh,
                  Tensor ww, Optional bw, Tensor row_gates, Tensor column_gates, Tensor values) {
  dispatch(w1, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Index B = rows.size(0), C = rows.size(1), width = w1.size(0);
    const Strip sides[2] = {{B, C, rows.size(2), last}, {B, C, columns.size(3), last}};
    const Index all = sides[0].rows() + sides[1].rows();
    const Kept<A> kept(values, all, width);
    const Norm<T> norm(weight, bias, width);
    std::vector<A> room;
    A* inner = kept.inner;
    for (Index i = 0; i < 2; ++i) {
      const A* strips = as_rows(in<A>(i ? columns : rows), sides[i], room);
      dots(strips, sides[i].rows(), C, in<T>(w1), in<T>(b1), width, inner);
      inner += sides[i].rows() * width;
    }
    if (weight && !mean) {
      statistics<A>(kept, all, width, eps);
    } else {
      for (Index k = 0; k < width; ++k) {
        kept.mean[k] = mean ? value(in<T>(*mean) + k) : A(0);
        kept.scale[k] = mean ? 1 / std::sqrt(value(in<T>(*var) + k) + A(eps)) : A(1);
        kept.variance[k] = 0;
      }
    }
    const std::vector<A> hidden = activated<T>(kept, norm, all, width);
    const A* from = hidden.data();
    for (Index i = 0; i < 2; ++i) {
      const Strip& s = sides[i];
      const Tensor &gates = i ? column_gates : row_gates, &matrix = i ? ww : wh;
      const Optional& add = i ? bw : bh;
      std::vector<A> spread = channels_last<T>(matrix), offset(C);
      for (Index c = 0; add && c < C; ++c) offset[c] = value(in<T>(*add) + c);
      if (!last) room.resize(s.rows() * C);
      A* to = last ? out<A>(gates) : room.data();
      mixes(from, s.rows(), width, spread.data(), offset.data(), C,
            [](Vec<A> logits) { return gate_of<A>(logits); }, to);
      if (!last) swap_sides(to, B, s.side, C, out<A>(gates));
      from += s.rows() * width;
    }
  });
}

void coord_layers_backward(Tensor rows, Tensor columns, Tensor row_gates, Tensor column_gates,
                           Tensor row_dots, Tensor column_dots, bool last, Tensor values,
                           Tensor w1, Optional weight, Optional bias, bool batch, Tensor wh,
                           Tensor ww, Optional strength, Optional row_adds, Optional column_adds,
                           Tensor of_parameters) {
  dispatch(w1, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Index B = rows.size(0), C = rows.size(1), width = w1.size(0);
    const Strip sides[2] = {{B, C, rows.size(2), last}, {B, C, columns.size(3), last}};
    const Index all = sides[0].rows() + sides[1].rows();
    const Kept<A> kept(values, all, width);
    const Norm<T> norm(weight, bias, width);
    const A drawn = temper_of<T>(strength).strength.value_or(A(1));
    A* next = out<A>(of_parameters);
    std::fill_n(next, of_parameters.numel(), A(0));
    const auto take = [&](Index n) { return std::exchange(next, next + n); };
    A *w1_to = take(width * C), *b1_to = take(width), *scale_to = take(width),
      *shift_to = take(width);
    A *spread_to[2], *add_to[2];
    for (Index i = 0; i < 2; ++i) spread_to[i] = take(C * width), add_to[i] = take(C);
    A* strength_to = take(1);

    // From the gates to the hidden values.
    const std::vector<A> hidden = activated<T>(kept, norm, all, width);
    std::vector<A> slopes(all * width), own, room, turned(C * width);
    const A* from = hidden.data();
    A* to = slopes.data();
    for (Index i = 0; i < 2; ++i) {
      const Strip& s = sides[i];
      const A *gates = in<A>(i ? column_gates : row_gates), *dot = in<A>(i ? column_dots : row_dots);
      own.resize(s.rows() * C);
      std::vector<A> parts(B);
      parallel(B, 4 * s.side * C, [&](Index b) {
        const Index at = b * s.side * C, n = s.side * C;
        const A *g = gates + at, *d = dot + at;
        parts[b] = sum_row<A>(n, [&](const auto& j) { return load(d, j) * (load(g, j) - A(1)); });
        each_slice<A>(n, [&](const auto& j) {
          const Vec<A> gate = load(g, j);
          store(own.data() + at, drawn * load(d, j) * gate * (1 - gate), j);
        });
      });
      for (const A part : parts) *strength_to += part;
      const A* logits = as_rows(own.data(), s, room);
      const std::vector<A> spread = channels_last<T>(i ? ww : wh);
      dots(logits, s.rows(), C, spread.data(), static_cast<const A*>(nullptr), width, to);
      std::fill(turned.begin(), turned.end(), A(0));
      outer(from, logits, s.rows(), width, C, turned.data(), add_to[i]);
      swap_sides(turned.data(), 1, width, C, spread_to[i]);
      from += s.rows() * width, to += s.rows() * width;
    }

    // Through nonlinearity and normalisation.
    each_inner<T>(kept, norm, all, width, [&](Index i, Index k, A unit, A v) {
      slopes[i] *= hardswish_slope(v);
      shift_to[k] += slopes[i], scale_to[k] += slopes[i] * unit;
    });
    each_inner<T>(kept, norm, all, width, [&](Index i, Index k, A unit, A) {
      const A mean = batch ? (shift_to[k] + unit * scale_to[k]) / all : A(0);
      slopes[i] = norm.weight[k] * kept.scale[k] * (slopes[i] - mean);
      b1_to[k] += slopes[i];
    });

    // To the strips.
    const A* slope = slopes.data();
    for (Index i = 0; i < 2; ++i) {
      const Strip& s = sides[i];
      const A* strips = as_rows(in<A>(i ? columns : rows), s, room);
      outer(slope, strips, s.rows(), width, C, w1_to, static_cast<A*>(nullptr));
      if (row_adds) {
        const A share = A(1) / sides[1 - i].side;
        A* adds = out<A>(i ? *column_adds : *row_adds);
        own.resize(s.rows() * C);
        A* found = last ? adds : own.data();
        mixes(slope, s.rows(), width, in<T>(w1), static_cast<const T*>(nullptr), C,
              [&](Vec<A> v) { return v * share; }, found);
        if (!last) swap_sides(found, B, s.side, C, adds);
      }
      slope += s.rows() * width;
    }
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "coord_layers(Tensor rows, Tensor columns, bool last, Tensor w1, Tensor? b1, Tensor? mean, "
      "Tensor? var, Tensor? weight, Tensor? bias, float eps, Tensor wh, Tensor? bh, Tensor ww, "
      "Tensor? bw, Tensor(a!) row_gates, Tensor(b!) column_gates, Tensor(c!) values) -> ()");
  m.def(
      "coord_layers_backward(Tensor rows, Tensor columns, Tensor row_gates, Tensor column_gates, "
      "Tensor row_dots, Tensor column_dots, bool last, Tensor values, Tensor w1, Tensor? weight, "
      "Tensor? bias, bool batch, Tensor wh, Tensor ww, Tensor? strength, Tensor(a!)? row_adds, "
      "Tensor(b!)? column_adds, Tensor(c!) of_parameters) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("coord_layers", TORCH_BOX(&foveate::coord_layers));
  m.impl("coord_layers_backward", TORCH_BOX(&foveate::coord_layers_backward));
}
