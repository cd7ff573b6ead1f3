// CBAM without gradients, whole.
#include <cmath>

#include "layers.h"
#include "plane.h"
#include "whole.h"

namespace foveate {
namespace {

// z -> scale * z + shift, what a normalisation does that does not look at the batch.
template <class A>
struct Affine {
  A scale = 1, shift = 0;
};

template <class T>
Affine<Acc<T>> affine_of(const Optional& mean, const Optional& var, const Optional& weight,
                         const Optional& bias, double eps) {
  using A = Acc<T>;
  if (!mean) return {};
  const A scale = value(in<T>(*weight)) / std::sqrt(value(in<T>(*var)) + A(eps));
  return {scale, value(in<T>(*bias)) - value(in<T>(*mean)) * scale};
}

template <class T>
struct Layers {
  Dense<T> fc1, fc2;
  std::vector<Acc<T>> kernel;
  Index side;
  Affine<Acc<T>> norm;
  Temper<Acc<T>> temper;
};

// The gates of channels, (B, C).
template <class T>
std::vector<Acc<T>> channel_gates(const T* x, const Images& s, const Layers<T>& of) {
  using A = Acc<T>;
  const Index pooled = s.B * s.C, hidden = s.B * of.fc1.out;
  std::vector<A> pools(2 * pooled), z(2 * hidden), logits(pooled), gates(pooled);
  read_positions<T, kPeak>(x, s, pools.data(), nullptr);
  apply(of.fc1, pools.data(), 2 * s.B, A(1), z.data());
  relu(z.data(), 2 * hidden);
  add_pairs(z.data(), s.B, of.fc1.out);
  apply(of.fc2, z.data(), s.B, A(2), logits.data());
  gates_of(logits.data(), pooled, gates.data());
  temper_all(gates.data(), pooled, of.temper, logits.data());
  return logits;
}

// The gates of positions, (B, H, W), of the map times the gates of its channels.
template <class T>
std::vector<Acc<T>> spatial_gates(const T* x, const Images& s, const Acc<T>* channel,
                                  const Layers<T>& of) {
  using A = Acc<T>;
  const Index N = s.N();
  std::vector<A> pools(s.B * 2 * N), gates(s.B * N);
  read_channels<T, kPeak>(x, s, channel, pools.data(), nullptr);
  const Margin m{s.H, s.W, of.side};
  parallel(s.B, 2 * N * of.side * of.side / 4, [&](Index b) {
    std::vector<A> padded(3 * m.plane());
    A* z = padded.data() + 2 * m.plane();
    pad(m, pools.data() + b * 2 * N, 2, padded.data());
    convolve(m, padded.data(), 2, of.kernel.data(), z);
    for (Index h = 0; h < s.H; ++h)
      each_slice<A>(s.W, [&](const auto& i) {
        const Vec<A> logit = load(z + h * m.stride(), i) * of.norm.scale + of.norm.shift;
        store(gates.data() + b * N + h * s.W, of.temper(gate_of<A>(logit)), i);
      });
  });
  return gates;
}

}  // namespace

void cbam(Tensor x, Tensor w1, Optional b1, Tensor w2, Optional b2, Tensor kernel, Optional mean,
          Optional var, Optional weight, Optional bias, double eps, Optional strength,
          Optional shortcut, Tensor y) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    const Shape all = shape_of(x);
    Layers<T> of{dense_of<T>(w1, b1), dense_of<T>(w2, b2), {}, kernel.size(2),
                 affine_of<T>(mean, var, weight, bias, eps), temper_of<T>(strength)};
    for (Index i = 0; i < kernel.numel(); ++i) of.kernel.push_back(value(in<T>(kernel) + i));
    const bool past = in<T>(x) != in<T>(y) && expect_output(out<T>(y), all);
    each_block(all, sizeof(T), [&](const Images& s, Index b) {
      const Index at = b * s.C * s.N();
      const T* from = in<T>(x) + at;
      const auto channel = channel_gates(from, s, of);
      const auto spatial = spatial_gates(from, s, channel.data(), of);
      weigh(from, s, channel.data(), spatial.data(), shifted(in<T>(shortcut), at),
            out<T>(y) + at, past);
    });
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "cbam(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor kernel, Tensor? mean, "
      "Tensor? var, Tensor? weight, Tensor? bias, float eps, Tensor? strength, Tensor? shortcut, "
      "Tensor(a!) y) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) { m.impl("cbam", TORCH_BOX(&foveate::cbam)); }
