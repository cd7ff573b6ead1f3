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

// Calls f(slice) for the values of a row, a vector of them at a time, none twice.
template <class A, class F>
void each_unit(Index width, const F& f) {
  for (Index k = 0; k < width; k += kLanes<A>)
    f(Slice<A>{k, 0, std::min(kLanes<A>, width - k)});
}

template <class A>
void statistics(const Kept<A>& to, Index rows, Index width, A eps) {
  each_unit<A>(width, [&](const auto& s) {
    Vec<A> mean = {}, squares = {}, scale;
    for (Index r = 0; r < rows; ++r) mean += load(to.inner + r * width, s);
    mean /= A(rows);
    for (Index r = 0; r < rows; ++r) {
      const Vec<A> d = load(to.inner + r * width, s) - mean;
      squares += d * d;
    }
    for (Index l = 0; l < kLanes<A>; ++l) scale[l] = 1 / std::sqrt(squares[l] / rows + eps);
    store(to.mean, mean, s);
    store(to.scale, scale, s);
    store(to.variance, squares / A(rows - 1), s);
  });
}

// Calls f(slice, at), where at(row) gives normalised values, and those as they enter the nonlinearity.
template <class T, class F>
void each_inner(const Kept<Acc<T>>& kept, const Norm<T>& norm, Index width, const F& f) {
  using A = Acc<T>;
  each_unit<A>(width, [&](const auto& s) {
    const Vec<A> mean = load(kept.mean, s), scale = load(kept.scale, s);
    const Vec<A> weight = load(norm.weight.data(), s), bias = load(norm.bias.data(), s);
    f(s, [&](Index r) {
      const Vec<A> unit = (load(kept.inner + r * width, s) - mean) * scale;
      return std::pair(unit, unit * weight + bias);
    });
  });
}

template <class A>
inline Vec<A> hardswish(Vec<A> v) {
  const Vec<A> above = v > A(-3) ? v + A(3) : Vec<A>{};
  return v == v ? v * (above < A(6) ? above : splat(A(6))) / A(6) : v;
}

template <class A>
inline Vec<A> hardswish_slope(Vec<A> v) {
  const Vec<A> within = v <= A(3) ? v / A(3) + A(0.5) : splat(A(1));
  return v < A(-3) ? Vec<A>{} : within;
}

template <class T>
std::vector<Acc<T>> activated(const Kept<Acc<T>>& kept, const Norm<T>& norm, Index rows,
                              Index width) {
  std::vector<Acc<T>> found(rows * width);
  each_inner<T>(kept, norm, width, [&](const auto& s, const auto& at) {
    for (Index r = 0; r < rows; ++r)
      store(found.data() + r * width, hardswish<Acc<T>>(at(r).second), s);
  });
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
    each_inner<T>(kept, norm, width, [&](const auto& s, const auto& at) {
      Vec<A> shift = {}, stretch = {}, bias = {};
      for (Index r = 0; r < all; ++r) {
        const auto [unit, v] = at(r);
        const Vec<A> slope = load(slopes.data() + r * width, s) * hardswish_slope<A>(v);
        store(slopes.data() + r * width, slope, s);
        shift += slope, stretch += slope * unit;
      }
      const Vec<A> factor = load(norm.weight.data(), s) * load(kept.scale, s);
      for (Index r = 0; r < all; ++r) {
        const Vec<A> mean = (shift + at(r).first * stretch) / A(all);
        const Vec<A> slope = load(slopes.data() + r * width, s);
        const Vec<A> found = factor * (of.batch ? slope - mean : slope);
        store(slopes.data() + r * width, found, s);
        bias += found;
      }
      store(shift_to, shift, s), store(scale_to, stretch, s), store(b1_to, bias, s);
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
