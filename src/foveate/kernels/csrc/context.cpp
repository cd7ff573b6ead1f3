// The global context block, whole: a weighted mean of all positions, two layers, and what they say
// of each channel, added to the map or multiplied with it.
#include <cmath>
#include <numeric>
#include <utility>

#include "gradients.h"
#include "layers.h"

namespace foveate {
namespace {

// What is kept of each image, one after another.
template <class A>
struct Kept {
  A *attention, *context, *inner, *values;  // (B, N), (B, C), (B, hidden), (B, C)

  Kept(A* next, const Shape& s, Index hidden) {
    const auto take = [&](Index n) { return std::exchange(next, next + n); };
    attention = take(s.B * s.N()), context = take(s.B * s.C);
    inner = take(s.B * hidden), values = take(s.B * s.C);
  }
  static Index count(const Shape& s, Index hidden) { return s.B * (s.N() + 2 * s.C + hidden); }
};

template <class T>
struct Layers {
  Dense<T> fc1, fc2;
  std::vector<Acc<T>> mask, weight, bias;
  Acc<T> eps;
  Temper<Acc<T>> temper;
  bool multiply;

  Layers(const Tensor& mask_weight, const Tensor& w1, const Optional& b1, const Tensor& scale,
         const Tensor& shift, double eps, const Tensor& w2, const Optional& b2,
         const Optional& strength, bool multiply)
      : fc1(dense_of<T>(w1, b1)),
        fc2(dense_of<T>(w2, b2)),
        eps(eps),
        temper(temper_of<T>(strength)),
        multiply(multiply) {
    for (Index c = 0; c < fc1.in; ++c) mask.push_back(value(in<T>(mask_weight) + c));
    for (Index k = 0; k < fc1.out; ++k) {
      weight.push_back(value(in<T>(scale) + k));
      bias.push_back(value(in<T>(shift) + k));
    }
  }
};

// At each position, the sum over the channels of x times a weight of the channel, (B or 1, C).
template <class T>
void over_channels(const T* x, const Images& s, const Acc<T>* weight, Index step, Acc<T>* to) {
  using A = Acc<T>;
  const Index N = s.N(), width = s.last ? kLanes<A> : read_width(s, N);
  const Index tiles = (N + width - 1) / width;
  parallel(s.B * tiles, s.C * width, [&](Index i) {
    const Index b = i / tiles, p = i % tiles * width, n = std::min(width, N - p);
    const A* by = weight + b * step;
    const Index stride = s.last ? s.C : N;
    const T* from = x + (s.last ? (b * N + p) * s.C : b * s.C * N + p);
    if (s.last) {
      const Vec<A> sums = sum_rows<A>(
          n, s.C, [&](Index r, const auto& i) { return load(from + r * stride, i) * load(by, i); });
      return store(to + b * N + p, sums, Slice<A>{0, 0, n});
    }
    const auto weighed = [&](Index r, const auto& i) { return load(from + r * stride, i) * by[r]; };
    sum_columns(s.C, n, n < N, weighed, to + b * N + p);
  });
}

// For each channel, the sum over the positions of x times a weight of the position, (B, N).
template <class T>
void over_positions(const T* x, const Images& s, const Acc<T>* weight, Acc<T>* to) {
  using A = Acc<T>;
  const Index N = s.N(), width = s.last ? read_width(s, s.C) : kLanes<A>;
  const Index tiles = (s.C + width - 1) / width;
  parallel(s.B * tiles, N * width, [&](Index i) {
    const Index b = i / tiles, c = i % tiles * width, n = std::min(width, s.C - c);
    const A* by = weight + b * N;
    const Index stride = s.last ? s.C : N;
    const T* from = x + (s.last ? b * N * s.C + c : (b * s.C + c) * N);
    if (!s.last) {
      const Vec<A> sums = sum_rows<A>(
          n, N, [&](Index r, const auto& i) { return load(from + r * stride, i) * load(by, i); });
      return store(to + b * s.C + c, sums, Slice<A>{0, 0, n});
    }
    const auto weighed = [&](Index r, const auto& i) { return load(from + r * stride, i) * by[r]; };
    sum_columns(N, n, n < s.C, weighed, to + b * s.C + c);
  });
}

template <class A>
void softmax(A* z, Index n) {
  A top = -std::numeric_limits<A>::infinity();
  for (Index i = 0; i < n; ++i) top = z[i] > top || z[i] != z[i] ? z[i] : top;
  each_slice<A>(n, [&](const auto& s) {
    // Lanes that an overlapping slice repeats are left alone.
    const Vec<A> old = load(z, s), now = masked<A>(splat(A(1)), s, A(0));
    store(z, now > Vec<A>{} ? exponential(old - top) : old, s);
  });
  const A total = sum_row<A>(n, [&](const auto& s) { return load(z, s); });
  for (Index i = 0; i < n; ++i) z[i] /= total;
}

template <class A>
struct Moments {
  A mean, scale;
};

template <class A>
Moments<A> moments(const A* z, Index n, A eps) {
  const A mean = sum_row<A>(n, [&](const auto& s) { return load(z, s); }) / n;
  return {mean, 1 / std::sqrt(spread_row(z, mean, n) / n + eps)};
}

// The hidden values of one image, after normalisation and nonlinearity.
template <class T>
void activate(const Layers<T>& of, const Acc<T>* inner, Acc<T>* to) {
  using A = Acc<T>;
  const Index n = of.fc1.out;
  const auto m = moments(inner, n, of.eps);
  for (Index k = 0; k < n; ++k) {
    const A v = (inner[k] - m.mean) * m.scale * of.weight[k] + of.bias[k];
    to[k] = v <= 0 ? A(0) : v;
  }
}

// Turns gradients of the hidden values of one image into those before the normalisation; those of
// its weight and bias go to `of_weight` and `of_bias`.
template <class T>
void through_activation(const Layers<T>& of, const Acc<T>* inner, Acc<T>* grads,
                        Acc<T>* of_weight, Acc<T>* of_bias) {
  using A = Acc<T>;
  const Index n = of.fc1.out;
  const auto m = moments(inner, n, of.eps);
  const auto unit = [&](Index k) { return (inner[k] - m.mean) * m.scale; };
  A total = 0, scaled = 0;
  for (Index k = 0; k < n; ++k) {
    const A u = unit(k), g = u * of.weight[k] + of.bias[k] <= 0 ? A(0) : grads[k];
    of_weight[k] = g * u, of_bias[k] = g;
    grads[k] = g * of.weight[k];
    total += grads[k], scaled += grads[k] * u;
  }
  for (Index k = 0; k < n; ++k)
    grads[k] = m.scale * (grads[k] - total / n - unit(k) * scaled / n);
}

// x plus a value for each channel.
template <class T>
void add_channels(const T* x, const Shape& s, const Acc<T>* channel, T* y, bool past) {
  using A = Acc<T>;
  const Index rows = s.last ? s.N() : s.C, n = s.last ? s.C : s.N();
  writing(past, [&](const auto& write) {
    parallel(s.B * rows, n, [&](Index row) {
      const A* along = channel + row / rows * s.C;
      const Vec<A> fixed = splat(s.last ? A(0) : channel[row]);
      each_slice<A>(n, [&](const auto& i) {
        write(y + row * n, load(x + row * n, i) + (s.last ? load(along, i) : fixed), i);
      });
    }, finish_past);
  });
}

// g gate + attention of_context + slope mask, the gradient of the map.
template <class T>
struct Parts {
  const Acc<T>*gate, *attention, *of_context, *slope, *mask;
};

template <class T>
void gather(const T* g, const Shape& s, const Parts<T>& by, T* to, bool past) {
  using A = Acc<T>;
  const Index N = s.N(), rows = s.last ? N : s.C, n = s.last ? s.C : N;
  const auto gather_row = [&](Index row, const auto& write) {
    const Index b = row / rows;
    const A *gate = by.gate ? by.gate + b * s.C : nullptr, *of_context = by.of_context + b * s.C;
    const A *attention = by.attention + b * N, *slope = by.slope + b * N;
    const Index r = row % rows;
    const T* from = g + row * n;
    if (s.last)
      return each_slice<A>(n, [&](const auto& i) {
        Vec<A> v = load(from, i);
        if (gate) v *= load(gate, i);
        write(to + row * n, v + attention[r] * load(of_context, i) + slope[r] * load(by.mask, i), i);
      });
    const Vec<A> times = splat(gate ? gate[r] : A(1));
    each_slice<A>(n, [&](const auto& i) {
      const Vec<A> more = of_context[r] * load(attention, i) + by.mask[r] * load(slope, i);
      write(to + row * n, load(from, i) * times + more, i);
    });
  };
  writing(past, [&](const auto& write) {
    parallel(s.B * rows, n, [&](Index row) { gather_row(row, write); }, finish_past);
  });
}

}  // namespace

void context(Tensor x, Tensor mask, Tensor w1, Optional b1, Tensor scale, Tensor shift, double eps,
             Tensor w2, Optional b2, Optional strength, bool multiply, Tensor y,
             Optional values) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Layers<T> of(mask, w1, b1, scale, shift, eps, w2, b2, strength, multiply);
    const Shape all = shape_of(x);
    const Index N = all.N(), C = all.C, hidden = of.fc1.out;
    std::vector<A> own(values ? 0 : Kept<A>::count(all, hidden));
    const Kept<A> kept(values ? out<A>(values) : own.data(), all, hidden);
    const bool past = expect_output(out<T>(y), all);
    each_block(all, sizeof(T), [&](const Images& s, Index first) {
      const T* from = in<T>(x) + first * C * N;
      T* to = out<T>(y) + first * C * N;
      A *attention = kept.attention + first * N, *means = kept.context + first * C;
      A *inner = kept.inner + first * hidden, *found = kept.values + first * C;
      over_channels(from, s, of.mask.data(), 0, attention);
      for (Index b = 0; b < s.B; ++b) softmax(attention + b * N, N);
      over_positions(from, s, attention, means);
      apply(of.fc1, means, s.B, A(1), inner);
      std::vector<A> active(s.B * hidden), acting(s.B * C);
      for (Index b = 0; b < s.B; ++b) activate(of, inner + b * hidden, active.data() + b * hidden);
      apply(of.fc2, active.data(), s.B, A(1), acting.data());
      if (!of.multiply) return add_channels(from, s, acting.data(), to, past);
      gates_of(acting.data(), s.B * C, found);
      temper_all(found, s.B * C, of.temper, acting.data());
      weigh<T>(from, s, acting.data(), nullptr, nullptr, to, past);
    });
  });
}

void context_backward(Tensor x, Tensor grad, Tensor values, Tensor mask, Tensor w1, Tensor scale,
                      Tensor shift, double eps, Tensor w2, Optional strength, bool multiply,
                      Optional to, Tensor of_parameters) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Layers<T> of(mask, w1, {}, scale, shift, eps, w2, {}, strength, multiply);
    const Shape all = shape_of(x);
    const Index B = all.B, N = all.N(), C = all.C, hidden = of.fc1.out;
    const Kept<A> kept(out<A>(values), all, hidden);
    const bool past = to && expect_output(out<T>(to), all);
    std::vector<A> outer(B * C), inner(B * hidden), active(B * hidden), of_weight(B * hidden);
    std::vector<A> of_bias(B * hidden), of_mask(B * C), strengths(B), slopes(B);
    each_block(all, sizeof(T), [&](const Images& s, Index first) {
      const T *xs = in<T>(x) + first * C * N, *gs = in<T>(grad) + first * C * N;
      const A *gates = kept.values + first * C, *attention = kept.attention + first * N;
      A *grads = outer.data() + first * C, *narrow_grads = inner.data() + first * hidden;
      std::vector<A> acting(s.B * C), of_context(s.B * C), slope(s.B * N);
      if (of.multiply) {
        dot_positions(xs, gs, s, Positions<A>{}, grads);
        temper_all(gates, s.B * C, of.temper, acting.data());
        for (Index b = 0; b < s.B; ++b)
          strengths[first + b] = through_gates(gates + b * C, C, of.temper, grads + b * C);
      } else {
        read_positions<T, kNothing>(gs, s, grads, nullptr);
        for (Index i = 0; i < s.B * C; ++i) grads[i] *= N;
      }
      apply_transposed(of.fc2, grads, s.B, narrow_grads);
      for (Index b = 0; b < s.B; ++b) {
        const Index at = (first + b) * hidden;
        activate(of, kept.inner + at, active.data() + at);
        through_activation(of, kept.inner + at, inner.data() + at, of_weight.data() + at,
                           of_bias.data() + at);
      }
      apply_transposed(of.fc1, narrow_grads, s.B, of_context.data());
      over_channels(xs, s, of_context.data(), C, slope.data());
      for (Index b = 0; b < s.B; ++b) {
        const A* p = attention + b * N;
        A *z = slope.data() + b * N;
        const A mean = sum_row<A>(N, [&](const auto& i) { return load(p, i) * load(z, i); });
        A total = 0;
        for (Index i = 0; i < N; ++i) z[i] = p[i] * (z[i] - mean), total += z[i];
        slopes[first + b] = total;
      }
      over_positions(xs, s, slope.data(), of_mask.data() + first * C);
      if (!to) return;
      const Parts<T> by{of.multiply ? acting.data() : nullptr, attention, of_context.data(),
                        slope.data(), of.mask.data()};
      gather(gs, s, by, out<T>(to) + first * C * N, past);
    });

    A* next = out<A>(of_parameters);
    const auto take = [&](Index n) { return std::exchange(next, next + n); };
    const auto rows_added = [&](const std::vector<A>& rows, Index n) {
      A* sums = take(n);
      for (Index k = 0; k < n; ++k) sums[k] = 0;
      for (Index i = 0; i < B * n; ++i) sums[i % n] += rows[i];
    };
    rows_added(of_mask, C);
    rows_added(slopes, 1);
    A *w1_to = take(hidden * C), *b1_to = take(hidden);
    layer_gradients(inner.data(), kept.context, B, C, hidden, A(1), w1_to, b1_to);
    rows_added(of_weight, hidden);
    rows_added(of_bias, hidden);
    A *w2_to = take(C * hidden), *b2_to = take(C);
    layer_gradients(outer.data(), active.data(), B, hidden, C, A(1), w2_to, b2_to);
    rows_added(strengths, 1);
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "context(Tensor x, Tensor mask, Tensor w1, Tensor? b1, Tensor scale, Tensor shift, float eps, "
      "Tensor w2, Tensor? b2, Tensor? strength, bool multiply, Tensor(a!) y, Tensor(b!)? values) "
      "-> ()");
  m.def(
      "context_backward(Tensor x, Tensor grad, Tensor values, Tensor mask, Tensor w1, Tensor scale, "
      "Tensor shift, float eps, Tensor w2, Tensor? strength, bool multiply, Tensor(a!)? to, "
      "Tensor(b!) of_parameters) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("context", TORCH_BOX(&foveate::context));
  m.impl("context_backward", TORCH_BOX(&foveate::context_backward));
}
