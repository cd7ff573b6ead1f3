// Gates of channels from nothing but their means, whole and without gradients.
#include "layers.h"
#include "whole.h"

namespace foveate {
namespace {

// y = x times the gates of the logits that f(means, images, logits) computes.
template <class T, class F>
void weigh_by_means(const Tensor& x, const Optional& strength, const Tensor& y, const F& f) {
  using A = Acc<T>;
  const Shape all = shape_of(x);
  const auto temper = temper_of<T>(strength);
  expect_pages(out<T>(y), all.B * all.C * all.N() * sizeof(T));
  each_block(all, sizeof(T), [&](const Images& s, Index first) {
    const Index at = first * s.C * s.N(), n = s.B * s.C;
    std::vector<A> means(n), logits(n);
    read_positions<T, false>(in<T>(x) + at, s, means.data(), nullptr);
    f(means.data(), s.B, logits.data());
    gates_of(logits.data(), n, temper, means.data());
    weigh(in<T>(x) + at, s, means.data(), static_cast<const A*>(nullptr), out<T>(y) + at);
  });
}

}  // namespace

void squeeze(Tensor x, Tensor w1, Optional b1, Tensor w2, Optional b2, Optional strength,
             Tensor y) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const auto fc1 = dense_of<T>(w1, b1), fc2 = dense_of<T>(w2, b2);
    weigh_by_means<T>(x, strength, y, [&](const A* means, Index images, A* logits) {
      std::vector<A> hidden(images * fc1.out);
      apply(fc1, means, images, A(1), hidden.data());
      relu(hidden.data(), images * fc1.out);
      apply(fc2, hidden.data(), images, A(1), logits);
    });
  });
}

void neighbours(Tensor x, Tensor kernel, Optional strength, Tensor y) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Index C = x.size(1), side = kernel.numel(), margin = side / 2;
    weigh_by_means<T>(x, strength, y, [&](const A* means, Index images, A* logits) {
      std::fill_n(logits, images * C, A(0));
      for (Index b = 0; b < images; ++b)
        for (Index k = 0; k < side; ++k) {
          const A weight = value(in<T>(kernel) + k);
          const Index by = k - margin, end = std::min(C, C - by);
          for (Index c = std::max<Index>(0, -by); c < end; ++c)
            logits[b * C + c] += weight * means[b * C + c + by];
        }
    });
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "squeeze(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? strength, "
      "Tensor(a!) y) -> ()");
  m.def("neighbours(Tensor x, Tensor kernel, Tensor? strength, Tensor(a!) y) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("squeeze", TORCH_BOX(&foveate::squeeze));
  m.impl("neighbours", TORCH_BOX(&foveate::neighbours));
}
