// CBAM in training, whole: what its gradients need is kept, and one more call gives all of them.
#include <cmath>
#include <numeric>
#include <utility>

#include "gradients.h"
#include "layers.h"
#include "plane.h"

namespace foveate {
namespace {

// What is kept, one after another: of channels, of positions, and of the normalisation.
template <class A>
struct Kept {
  A *pools, *hidden, *gates;  // (B, 2, C), (B, 2, hidden), (B, C)
  A *planes, *logits;         // (B, 2, H, W), and (B, H, W) before the normalisation
  A* norm;                    // mean, 1 / deviation, unbiased variance
  int32_t *channel_at, *spatial_at;

  Kept(const Tensor& values, const Tensor& places, const Shape& s, Index width) {
    A* next = out<A>(values);
    const auto take = [&](Index n) { return std::exchange(next, next + n); };
    pools = take(2 * s.B * s.C), hidden = take(2 * s.B * width), gates = take(s.B * s.C);
    planes = take(2 * s.B * s.N()), logits = take(s.B * s.N()), norm = take(3);
    channel_at = out<int32_t>(places), spatial_at = channel_at + s.B * s.C;
  }
};

template <class T>
struct Layers {
  Dense<T> fc1, fc2;
  std::vector<Acc<T>> kernel;
  Margin margin;
  Acc<T> weight = 1, bias = 0;
  Temper<Acc<T>> temper;

  Layers(const Shape& s, const Tensor& w1, const Optional& b1, const Tensor& w2,
         const Optional& b2, const Tensor& taps, const Optional& scale, const Optional& shift,
         const Optional& strength)
      : fc1(dense_of<T>(w1, b1)),
        fc2(dense_of<T>(w2, b2)),
        margin{s.H, s.W, taps.size(2)},
        temper(temper_of<T>(strength)) {
    for (Index i = 0; i < taps.numel(); ++i) kernel.push_back(value(in<T>(taps) + i));
    if (scale) weight = value(in<T>(*scale)), bias = value(in<T>(*shift));
  }

  // The gates of n positions from their logits, which the normalisation comes before.
  void gates(const Acc<T>* logits, const Acc<T>* norm, Index n, Acc<T>* to) const {
    each_slice<Acc<T>>(n, [&](const auto& s) {
      const Vec<Acc<T>> unit = (load(logits, s) - norm[0]) * norm[1];
      store(to, gate_of<Acc<T>>(unit * weight + bias), s);
    });
  }
};

// Everything before the normalisation.
template <class T>
void read(const T* x, const Images& s, Index first, const Layers<T>& of, const Kept<Acc<T>>& to) {
  using A = Acc<T>;
  const Index N = s.N(), hidden = of.fc1.out;
  A *pools = to.pools + 2 * first * s.C, *z = to.hidden + 2 * first * hidden;
  A *gates = to.gates + first * s.C, *planes = to.planes + 2 * first * N;
  read_positions<T, kPlace>(x, s, pools, to.channel_at + first * s.C);
  apply(of.fc1, pools, 2 * s.B, A(1), z);
  relu(z, 2 * s.B * hidden);
  std::vector<A> both(z, z + 2 * s.B * hidden), acting(s.B * s.C);
  add_pairs(both.data(), s.B, hidden);
  apply(of.fc2, both.data(), s.B, A(2), acting.data());
  gates_of(acting.data(), s.B * s.C, gates);
  temper_all(gates, s.B * s.C, of.temper, acting.data());
  read_channels<T, kPlace>(x, s, acting.data(), planes, to.spatial_at + first * N);
  const Margin& m = of.margin;
  parallel(s.B, 2 * N * m.side * m.side / 4, [&](Index b) {
    std::vector<A> padded(3 * m.plane());
    A* sums = padded.data() + 2 * m.plane();
    pad(m, planes + b * 2 * N, 2, padded.data());
    convolve(m, padded.data(), 2, of.kernel.data(), sums);
    for (Index h = 0; h < s.H; ++h)
      std::copy_n(sums + h * m.stride(), s.W, to.logits + (first + b) * N + h * s.W);
  });
}

// Mean, 1 / deviation and unbiased variance.
template <class A>
void normalise(const A* z, Index n, A eps, A* norm) {
  const A mean = sum_row<A>(n, [&](const auto& s) { return load(z, s); }) / n;
  const A spread = spread_row(z, mean, n);
  norm[0] = mean, norm[1] = 1 / std::sqrt(spread / n + eps), norm[2] = spread / (n - 1);
}

// Gradients of the two planes of one image, and of the kernel, from those of the logits.
template <class T>
void planes_gradients(const Layers<T>& of, const Acc<T>* planes, const Acc<T>* grad,
                      Acc<T>* of_kernel, Acc<T>* peak, Acc<T>* mean) {
  using A = Acc<T>;
  const Margin& m = of.margin;
  const Index taps = m.side * m.side;
  std::vector<A> padded(4 * m.plane()), turned(of.kernel.rbegin(), of.kernel.rend());
  A *own = padded.data() + 2 * m.plane(), *sums = own + m.plane();
  pad(m, planes, 2, padded.data());
  pad(m, grad, 1, own);
  convolve_gradient(m, padded.data(), 2, own, of_kernel);
  for (Index k = 0; k < 2; ++k) {
    convolve(m, own, 1, turned.data() + (1 - k) * taps, sums);
    for (Index h = 0; h < m.H; ++h)
      std::copy_n(sums + h * m.stride(), m.W, (k ? mean : peak) + h * m.W);
  }
}

// From the gradients of the sum of two rows of units to those of each, in place: (B, 2, n).
template <class A>
void back_through_relu(const A* units, Index B, Index n, A* grads) {
  for (Index b = B - 1; b >= 0; --b)
    for (Index k = 1; k >= 0; --k)
      for (Index i = 0; i < n; ++i) {
        const Index to = (2 * b + k) * n + i;
        grads[to] = units[to] <= 0 ? A(0) : grads[b * n + i];
      }
}

}  // namespace

void cbam_forward(Tensor x, Tensor w1, Optional b1, Tensor w2, Optional b2, Tensor kernel,
                  Optional mean, Optional var, Optional weight, Optional bias, double eps,
                  Optional strength, Optional shortcut, Tensor y, Tensor values,
                  Tensor places) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Shape all = shape_of(x);
    const Index N = all.N();
    const Layers<T> of(all, w1, b1, w2, b2, kernel, weight, bias, strength);
    const Kept<A> kept(values, places, all, of.fc1.out);
    const bool past = expect_output(out<T>(y), all);
    each_block(all, sizeof(T), [&](const Images& s, Index b) {
      read(in<T>(x) + b * s.C * N, s, b, of, kept);
    });
    A* norm = kept.norm;
    if (mean)
      norm[0] = value(in<T>(*mean)), norm[1] = 1 / std::sqrt(value(in<T>(*var)) + A(eps));
    else if (weight) normalise(kept.logits, all.B * N, A(eps), norm);
    else norm[0] = 0, norm[1] = 1;
    each_block(all, sizeof(T), [&](const Images& s, Index b) {
      std::vector<A> channel(s.B * s.C), spatial(s.B * N), acting(s.B * N);
      temper_all(kept.gates + b * s.C, s.B * s.C, of.temper, channel.data());
      of.gates(kept.logits + b * N, kept.norm, s.B * N, spatial.data());
      temper_all(spatial.data(), s.B * N, of.temper, acting.data());
      const Index at = b * s.C * N;
      weigh(in<T>(x) + at, s, channel.data(), acting.data(), shifted(in<T>(shortcut), at),
            out<T>(y) + at, past);
    });
  });
}

void cbam_backward(Tensor x, Tensor grad, Tensor values, Tensor places, Tensor w1, Tensor w2,
                   Tensor kernel, Optional weight, Optional bias, bool batch, Optional strength,
                   Optional y, Optional of_shortcut, Optional to, Tensor of_parameters) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Shape all = shape_of(x);
    const Index B = all.B, C = all.C, N = all.N(), taps = kernel.numel();
    const Layers<T> of(all, w1, {}, w2, {}, kernel, weight, bias, strength);
    const Index hidden = of.fc1.out;
    const Kept<A> kept(values, places, all, hidden);
    const T* from = in<T>(x);
    const BackThroughEnd<T> end(y, of_shortcut);
    T* gx = out<T>(to);
    const bool past = gx && expect_output(gx, all);

    // Gradients of the normalised logits, and for each image their sums.
    std::vector<A> gates(B * N), slopes(B * N), acting(B * C), sums(B), scaled(B), strengths(B);
    temper_all(kept.gates, B * C, of.temper, acting.data());
    each_block(all, sizeof(T), [&](const Images& s, Index first) {
      const Index here = first * C * N;
      const T* g = end(in<T>(grad), here, s.B * C * N);
      dot_channels(from + here, g, s, acting.data() + first * C, slopes.data() + first * N);
      parallel(s.B, 16 * N, [&](Index i) {
        const Index b = first + i, at = b * N;
        of.gates(kept.logits + at, kept.norm, N, gates.data() + at);
        strengths[b] = through_gates(gates.data() + at, N, of.temper, slopes.data() + at);
        const auto slope = [&](const auto& s) { return load(slopes.data() + at, s); };
        sums[b] = sum_row<A>(N, slope);
        scaled[b] = sum_row<A>(N, [&](const auto& s) {
          return slope(s) * ((load(kept.logits + at, s) - kept.norm[0]) * kept.norm[1]);
        });
      });
    });
    const auto total = [](const std::vector<A>& v) {
      return std::accumulate(v.begin(), v.end(), A(0));
    };
    const A of_bias = total(sums), of_weight = total(scaled);
    const A mean = batch ? of_bias / (B * N) : A(0), part = batch ? of_weight / (B * N) : A(0);

    // Gradients of the planes and of the vectors, and of the map.
    std::vector<A> channel(B * C), bottleneck(2 * B * hidden), of_kernel(B * taps);
    each_block(all, sizeof(T), [&](const Images& s, Index first) {
      std::vector<A> peak(s.B * N), plus(s.B * N), pools(2 * s.B * C), add(s.B * C);
      A *spatial = gates.data() + first * N, *grads = channel.data() + first * C;
      A* inner = bottleneck.data() + 2 * first * hidden;
      parallel(s.B, 2 * N * taps / 4, [&](Index i) {
        const Index b = first + i;
        A* slope = slopes.data() + b * N;
        for (Index p = 0; p < N; ++p) {
          const A unit = (kept.logits[b * N + p] - kept.norm[0]) * kept.norm[1];
          slope[p] = of.weight * kept.norm[1] * (slope[p] - mean - unit * part);
        }
        planes_gradients(of, kept.planes + 2 * b * N, slope, of_kernel.data() + b * taps,
                         peak.data() + i * N, plus.data() + i * N);
        for (Index p = 0; p < N; ++p) plus[i * N + p] /= C;
      });
      std::vector<A> weights(s.B * N);
      temper_all(spatial, s.B * N, of.temper, weights.data());
      const Positions<A> by{weights.data(), plus.data(), peak.data(), kept.spatial_at + first * N};
      const T* xs = from + first * C * N;
      const T* gs = end.of_branch(in<T>(grad)) + first * C * N;
      dot_positions(xs, gs, s, s.last ? by : Positions<A>{by.gate, by.plus}, grads);
      if (!s.last)
        parallel(s.B, 16 * N, [&](Index i) {
          for (Index p = i * N; p < (i + 1) * N; ++p) {
            const Index c = i * C + by.at[p];
            grads[c] += peak[p] * value(xs + c * N + p % N);
          }
        });
      for (Index i = 0; i < s.B; ++i)
        strengths[first + i] +=
            through_gates(kept.gates + (first + i) * C, C, of.temper, grads + i * C);
      apply_transposed(of.fc2, grads, s.B, inner);
      back_through_relu(kept.hidden + 2 * first * hidden, s.B, hidden, inner);
      if (!gx) return;
      apply_transposed(of.fc1, inner, 2 * s.B, pools.data());
      for (Index i = 0; i < s.B; ++i)
        for (Index c = 0; c < C; ++c) add[i * C + c] = pools[2 * i * C + c] / N;
      T* to = gx + first * C * N;
      spread(gs, s, acting.data() + first * C, by, add.data(), to, past);
      for (Index i = 0; i < s.B; ++i)
        for (Index c = 0; c < C; ++c) {
          const Index p = kept.channel_at[(first + i) * C + c];
          add_at(to + s.index(i, c, p), pools[(2 * i + 1) * C + c]);
        }
    });

    A* next = out<A>(of_parameters);
    const auto take = [&](Index n) { return std::exchange(next, next + n); };
    A *w1_to = take(hidden * C), *b1_to = take(hidden), *w2_to = take(C * hidden), *b2_to = take(C);
    layer_gradients(bottleneck.data(), kept.pools, 2 * B, C, hidden, A(1), w1_to, b1_to);
    std::vector<A> both(kept.hidden, kept.hidden + 2 * B * hidden);
    add_pairs(both.data(), B, hidden);
    layer_gradients(channel.data(), both.data(), B, hidden, C, A(2), w2_to, b2_to);
    for (Index i = 0; i < taps; ++i, ++next) {
      *next = 0;
      for (Index b = 0; b < B; ++b) *next += of_kernel[b * taps + i];
    }
    next[0] = of_weight, next[1] = of_bias, next[2] = total(strengths);
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "cbam_forward(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor kernel, "
      "Tensor? mean, Tensor? var, Tensor? weight, Tensor? bias, float eps, Tensor? strength, "
      "Tensor? shortcut, Tensor(a!) y, Tensor(b!) values, Tensor(c!) places) -> ()");
  m.def(
      "cbam_backward(Tensor x, Tensor grad, Tensor values, Tensor places, Tensor w1, Tensor w2, "
      "Tensor kernel, Tensor? weight, Tensor? bias, bool batch, Tensor? strength, "
      "Tensor? y, Tensor(a!)? of_shortcut, Tensor(b!)? to, Tensor(c!) of_parameters) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("cbam_forward", TORCH_BOX(&foveate::cbam_forward));
  m.impl("cbam_backward", TORCH_BOX(&foveate::cbam_backward));
}
