// Gates of channels from nothing but their means, whole, with and without gradients.
#include <numeric>
#include <utility>

#include "gradients.h"
#include "layers.h"

namespace foveate {
namespace {

// What the gradients need: (B, C) each, then what the layers keep.
template <class A>
struct Kept {
  std::vector<A> own;  // where nothing is to be kept
  A *means, *gates, *inner;

  Kept(const Optional& values, const Shape& s, Index width) {
    A* at = out<A>(values);
    if (!at) own.resize(s.B * (2 * s.C + width)), at = own.data();
    means = at, gates = means + s.B * s.C, inner = gates + s.B * s.C;
  }
};

// y = x times the gates of the logits that f(first image, images, logits) computes; with a shortcut
// what a block ends in.
template <class T, class F>
void weigh_by_means(const Tensor& x, const Optional& strength, const Optional& shortcut,
                    const Tensor& y, const Kept<Acc<T>>& kept, const F& f) {
  using A = Acc<T>;
  const Shape all = shape_of(x);
  const auto temper = temper_of<T>(strength);
  const bool past = in<T>(x) != in<T>(y) && expect_output(out<T>(y), all);
  each_block(all, sizeof(T), [&](const Images& s, Index first) {
    const Index at = first * s.C * s.N(), n = s.B * s.C;
    std::vector<A> logits(n), acting(n);
    read_positions<T, kNothing>(in<T>(x) + at, s, kept.means + first * s.C, nullptr);
    f(first, s.B, logits.data());
    gates_of(logits.data(), n, kept.gates + first * s.C);
    temper_all(kept.gates + first * s.C, n, temper, acting.data());
    weigh<T>(in<T>(x) + at, s, acting.data(), nullptr, shifted(in<T>(shortcut), at),
             out<T>(y) + at, past);
  });
}

// The gradients of the map, of the strength, and of the shortcut where a block ended in y.
// f(first image, images, gradients of the logits) gives those of the means.
template <class T, class F>
Acc<T> through_means(const Tensor& x, const Tensor& grad, const Optional& strength,
                     const BackThroughEnd<T>& end, const Optional& to, const Kept<Acc<T>>& kept,
                     const F& f) {
  using A = Acc<T>;
  const Shape all = shape_of(x);
  const auto temper = temper_of<T>(strength);
  const bool past = to && expect_output(out<T>(to), all);
  std::vector<A> strengths(all.B);
  each_block(all, sizeof(T), [&](const Images& s, Index first) {
    const Index at = first * s.C * s.N(), n = s.B * s.C;
    const A* gates = kept.gates + first * s.C;
    const T* g = end(in<T>(grad), at, n * s.N());
    std::vector<A> grads(n), acting(n);
    dot_positions(in<T>(x) + at, g, s, Positions<A>{}, grads.data());
    for (Index b = 0; b < s.B; ++b)
      strengths[first + b] = through_gates(gates + b * s.C, s.C, temper, grads.data() + b * s.C);
    A* means = f(first, s.B, grads.data());
    if (!to) return;
    for (Index i = 0; i < n; ++i) means[i] /= s.N();
    temper_all(gates, n, temper, acting.data());
    spread(g, s, acting.data(), Positions<A>{}, means, out<T>(to) + at, past);
  });
  return std::accumulate(strengths.begin(), strengths.end(), A(0));
}

// to[c] += sum over k of weight(k) from[c + k - side / 2], beyond whose ends are zeros.
template <class A, class F>
void slide(const A* from, Index C, Index side, const F& weight, A* to) {
  for (Index k = 0; k < side; ++k) {
    const Index by = k - side / 2, end = std::min(C, C - by);
    const A w = weight(k);
    for (Index c = std::max<Index>(0, -by); c < end; ++c) to[c] += w * from[c + by];
  }
}

}  // namespace

void weigh_channels(Tensor x, Tensor channel, Tensor y) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Shape s = shape_of(x);
    const bool past = expect_output(out<T>(y), s);
    weigh<T>(in<T>(x), s, in<Acc<T>>(channel), nullptr, nullptr, out<T>(y), past);
  });
}

void squeeze(Tensor x, Tensor w1, Optional b1, Tensor w2, Optional b2, Optional strength,
             Optional shortcut, Tensor y, Optional values) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const auto fc1 = dense_of<T>(w1, b1), fc2 = dense_of<T>(w2, b2);
    const Kept<A> kept(values, shape_of(x), fc1.out);
    weigh_by_means<T>(x, strength, shortcut, y, kept, [&](Index first, Index images, A* logits) {
      A* hidden = kept.inner + first * fc1.out;
      apply(fc1, kept.means + first * fc1.in, images, A(1), hidden);
      relu(hidden, images * fc1.out);
      apply(fc2, hidden, images, A(1), logits);
    });
  });
}

void squeeze_backward(Tensor x, Tensor grad, Tensor values, Tensor w1, Tensor w2,
                      Optional strength, Optional y, Optional of_shortcut, Optional to,
                      Tensor of_parameters) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const auto fc1 = dense_of<T>(w1, {}), fc2 = dense_of<T>(w2, {});
    const Shape s = shape_of(x);
    const Index C = s.C, width = fc1.out;
    const Kept<A> kept(values, s, width);
    std::vector<A> outer(s.B * C), inner(s.B * width), means(s.B * C);
    A* next = out<A>(of_parameters);
    const auto take = [&](Index n) { return std::exchange(next, next + n); };
    A *w1_to = take(width * C), *b1_to = take(width), *w2_to = take(C * width), *b2_to = take(C);
    const BackThroughEnd<T> end(y, of_shortcut);
    *next = through_means<T>(x, grad, strength, end, to, kept, [&](Index first, Index images,
                                                                   A* grads) {
      std::copy_n(grads, images * C, outer.data() + first * C);
      A* hidden = inner.data() + first * width;
      apply_transposed(fc2, grads, images, hidden);
      for (Index i = 0; i < images * width; ++i)
        if (kept.inner[first * width + i] <= 0) hidden[i] = 0;
      apply_transposed(fc1, hidden, images, means.data() + first * C);
      return means.data() + first * C;
    });
    layer_gradients(inner.data(), kept.means, s.B, C, width, A(1), w1_to, b1_to);
    layer_gradients(outer.data(), kept.inner, s.B, width, C, A(1), w2_to, b2_to);
  });
}

void neighbours(Tensor x, Tensor kernel, Optional strength, Optional shortcut, Tensor y,
                Optional values) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Shape s = shape_of(x);
    const Kept<A> kept(values, s, 0);
    const auto weight = [&](Index k) { return value(in<T>(kernel) + k); };
    weigh_by_means<T>(x, strength, shortcut, y, kept, [&](Index first, Index images, A* logits) {
      for (Index b = 0; b < images; ++b)
        slide(kept.means + (first + b) * s.C, s.C, kernel.numel(), weight, logits + b * s.C);
    });
  });
}

void neighbours_backward(Tensor x, Tensor grad, Tensor values, Tensor kernel, Optional strength,
                         Optional y, Optional of_shortcut, Optional to, Tensor of_parameters) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Shape s = shape_of(x);
    const Index C = s.C, side = kernel.numel();
    const Kept<A> kept(values, s, 0);
    std::vector<A> of_means(s.B * C), of_kernel(s.B * side);
    A* found = out<A>(of_parameters);
    const auto turned = [&](Index k) { return value(in<T>(kernel) + side - 1 - k); };
    const BackThroughEnd<T> end(y, of_shortcut);
    found[side] = through_means<T>(x, grad, strength, end, to, kept, [&](Index at, Index n,
                                                                         A* grads) {
      for (Index b = 0; b < n; ++b) {
        const A *slopes = grads + b * C, *means = kept.means + (at + b) * C;
        slide(slopes, C, side, turned, of_means.data() + (at + b) * C);
        for (Index k = 0; k < side; ++k) {
          const Index by = k - side / 2, from = std::max<Index>(0, -by);
          const Index end = std::max(from, std::min(C, C - by));
          of_kernel[(at + b) * side + k] =
              std::inner_product(slopes + from, slopes + end, means + from + by, A(0));
        }
      }
      return of_means.data() + at * C;
    });
    for (Index k = 0; k < side; ++k) {
      found[k] = 0;
      for (Index b = 0; b < s.B; ++b) found[k] += of_kernel[b * side + k];
    }
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def("weigh_channels(Tensor x, Tensor channel, Tensor(a!) y) -> ()");
  m.def(
      "squeeze(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? strength, "
      "Tensor? shortcut, Tensor(a!) y, Tensor(b!)? values) -> ()");
  m.def(
      "squeeze_backward(Tensor x, Tensor grad, Tensor values, Tensor w1, Tensor w2, "
      "Tensor? strength, Tensor? y, Tensor(a!)? of_shortcut, Tensor(b!)? to, "
      "Tensor(c!) of_parameters) -> ()");
  m.def(
      "neighbours(Tensor x, Tensor kernel, Tensor? strength, Tensor? shortcut, Tensor(a!) y, "
      "Tensor(b!)? values) -> ()");
  m.def(
      "neighbours_backward(Tensor x, Tensor grad, Tensor values, Tensor kernel, "
      "Tensor? strength, Tensor? y, Tensor(a!)? of_shortcut, Tensor(b!)? to, "
      "Tensor(c!) of_parameters) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("weigh_channels", TORCH_BOX(&foveate::weigh_channels));
  m.impl("squeeze", TORCH_BOX(&foveate::squeeze));
  m.impl("squeeze_backward", TORCH_BOX(&foveate::squeeze_backward));
  m.impl("neighbours", TORCH_BOX(&foveate::neighbours));
  m.impl("neighbours_backward", TORCH_BOX(&foveate::neighbours_backward));
}
