#include <array>
#include <cmath>
#include <utility>

#include "coord.h"
#include "layers.h"
#include "product.h"
#include "reduce.h"

namespace foveate {
namespace {

// Means of one direction of a map, or what belongs to them: (B, side, C) where channels are last,
// else (B, C, side).
struct Side {
  Index B, C, side;
  bool last;
  Index rows() const { return B * side; }
};

using Sides = std::array<Side, 2>;

inline Sides sides_of(const Strips& s, bool last) {
  const Index B = s.rows.size(0), C = s.rows.size(1);
  return {Side{B, C, s.rows.size(2), last}, Side{B, C, s.columns.size(3), last}};
}

// With a row of channels for each strip; in `room`, if need be.
template <class A>
const A* as_rows(const A* p, const Side& s, Lines<A>& room) {
  if (s.last) return p;
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
Lines<Acc<T>> channels_last(const Tensor& weight) {
  Lines<Acc<T>> found(weight.numel());
  swap_sides(in<T>(weight), 1, weight.size(0), weight.size(1), found.data());
  return found;
}

}  // namespace

void coord_gates(const Strips& strips, bool last, const CoordLayers& of, const Optional& mean,
                 const Optional& var, double eps, const Strips& gates, const Tensor& values) {
  dispatch(of.w1, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Sides sides = sides_of(strips, last);
    const Index B = sides[0].B, C = sides[0].C, width = of.w1.size(0);
    const Index all = sides[0].rows() + sides[1].rows();
    const Kept<A> kept(values, all, width);
    const Norm<T> norm(of.weight, of.bias, width);
    Lines<A> room(last ? 0 : std::max(sides[0].rows(), sides[1].rows()) * C);
    A* inner = kept.inner;
    for (Index i = 0; i < 2; ++i) {
      const A* rows = as_rows(in<A>(i ? strips.columns : strips.rows), sides[i], room);
      dots(rows, sides[i].rows(), C, in<T>(of.w1), in<T>(of.b1), width, inner);
      inner += sides[i].rows() * width;
    }
    if (of.batch) {
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
      const Side& s = sides[i];
      const Optional& add = i ? of.bw : of.bh;
      Lines<A> spread = channels_last<T>(i ? of.ww : of.wh);
      std::vector<A> offset(C);
      for (Index c = 0; add && c < C; ++c) offset[c] = value(in<T>(*add) + c);
      A* found = out<A>(i ? gates.columns : gates.rows);
      A* to = last ? found : room.data();
      mixes(from, s.rows(), width, spread.data(), offset.data(), C,
            [](Vec<A> logits) { return gate_of<A>(logits); }, to);
      if (!last) swap_sides(to, B, s.side, C, found);
      from += s.rows() * width;
    }
  });
}

Strips coord_acting(const Strips& gates, const Optional& strength) {
  if (!strength) return gates;
  const Strips acting{torch::stable::empty_like(gates.rows), torch::stable::empty_like(gates.columns)};
  dispatch(*strength, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Temper<A> temper = temper_of<T>(strength);
    for (Index i = 0; i < 2; ++i) {
      const Tensor &from = i ? gates.columns : gates.rows, &to = i ? acting.columns : acting.rows;
      const Index B = from.size(0), n = from.numel() / std::max<Index>(1, B);
      const A* each = in<A>(from);
      A* own = out<A>(to);
      parallel(B, n, [&](Index b) { temper_all(each + b * n, n, temper, own + b * n); });
    }
  });
  return acting;
}

void coord_gradients(const Strips& strips, const Strips& gates, const Strips& dots, bool last,
                     const CoordLayers& of, const Tensor& values,
                     const std::optional<Strips>& adds, const Tensor& of_parameters) {
  dispatch(of.w1, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Sides sides = sides_of(strips, last);
    const Index B = sides[0].B, C = sides[0].C, width = of.w1.size(0);
    const Index all = sides[0].rows() + sides[1].rows();
    const Kept<A> kept(values, all, width);
    const Norm<T> norm(of.weight, of.bias, width);
    const A drawn = temper_of<T>(of.strength).strength.value_or(A(1));
    A* next = out<A>(of_parameters);
    const auto take = [&](Index n) { return std::exchange(next, next + n); };
    A *w1_to = take(width * C), *b1_to = take(width), *scale_to = take(width),
      *shift_to = take(width);
    A *spread_to[2], *add_to[2];
    for (Index i = 0; i < 2; ++i) spread_to[i] = take(C * width), add_to[i] = take(C);
    A* strength_to = take(1);
    for (A* sums : {b1_to, scale_to, shift_to}) std::fill_n(sums, width, A(0));
    *strength_to = 0;

    // From the gates to the hidden values.
    const std::vector<A> hidden = activated<T>(kept, norm, all, width);
    const Index most = std::max(sides[0].rows(), sides[1].rows()) * C;
    Lines<A> own(most), room(last ? 0 : most);
    std::vector<A> slopes(all * width);
    const A* from = hidden.data();
    A* to = slopes.data();
    for (Index i = 0; i < 2; ++i) {
      const Side& s = sides[i];
      const A *gate = in<A>(i ? gates.columns : gates.rows), *dot = in<A>(i ? dots.columns : dots.rows);
      std::vector<A> parts(B);
      parallel(B, 4 * s.side * C, [&](Index b) {
        const Index at = b * s.side * C, n = s.side * C;
        const A *g = gate + at, *d = dot + at;
        parts[b] = sum_row<A>(n, [&](const auto& j) { return load(d, j) * (load(g, j) - A(1)); });
        each_slice<A>(n, [&](const auto& j) {
          const Vec<A> v = load(g, j);
          store(own.data() + at, drawn * load(d, j) * v * (1 - v), j);
        });
      });
      for (const A part : parts) *strength_to += part;
      const A* logits = as_rows(own.data(), s, room);
      Lines<A> spread = channels_last<T>(i ? of.ww : of.wh);
      foveate::dots(logits, s.rows(), C, spread.data(), static_cast<const A*>(nullptr), width, to);
      outer(from, logits, s.rows(), width, C, add_to[i], [&](const A* block, Index c, Index wide) {
        put_block_turned(block, width, wide, spread_to[i] + c * width, width);
      });
      from += s.rows() * width, to += s.rows() * width;
    }

    // Through nonlinearity and normalisation.
    each_inner<T>(kept, norm, all, width, [&](Index i, Index k, A unit, A v) {
      slopes[i] *= hardswish_slope(v);
      shift_to[k] += slopes[i], scale_to[k] += slopes[i] * unit;
    });
    each_inner<T>(kept, norm, all, width, [&](Index i, Index k, A unit, A) {
      const A mean = of.batch ? (shift_to[k] + unit * scale_to[k]) / all : A(0);
      slopes[i] = norm.weight[k] * kept.scale[k] * (slopes[i] - mean);
      b1_to[k] += slopes[i];
    });

    // To the strips.
    const A* slope = slopes.data();
    for (Index i = 0; i < 2; ++i) {
      const Side& s = sides[i];
      const A* rows = as_rows(in<A>(i ? strips.columns : strips.rows), s, room);
      A* none = nullptr;
      outer(slope, rows, s.rows(), width, C, none, [&](const A* block, Index c, Index wide) {
        put_block(block, width, wide, i, w1_to + c, C);
      });
      if (adds) {
        const A share = A(1) / sides[1 - i].side;
        A* to = out<A>(i ? adds->columns : adds->rows);
        A* found = last ? to : own.data();
        mixes(slope, s.rows(), width, in<T>(of.w1), static_cast<const T*>(nullptr), C,
              [&](Vec<A> v) { return v * share; }, found);
        if (!last) swap_sides(found, B, s.side, C, to);
      }
      slope += s.rows() * width;
    }
  });
}

}  // namespace foveate
