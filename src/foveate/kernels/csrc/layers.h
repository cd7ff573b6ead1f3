// The small layers of whole mechanisms: what lies between the readings of a map and its weighing.
#pragma once

#include "common.h"
#include "exp.h"
#include "fold.h"

namespace foveate {

// A matrix product and a bias on vectors, as of a 1x1 convolution.
template <class T>
struct Dense {
  const T *weight, *bias;  // (out, in), and (out) or null
  Index in, out;
};

template <class T>
inline Dense<T> dense_of(const Tensor& weight, const Optional& bias) {
  return {in<T>(weight), in<T>(bias), weight.size(1), weight.size(0)};
}

// Each row of `from` times the weight, plus `share` times the bias. Two rows and half as many
// outputs as a vector has lanes at once: their sums are folded together.
template <class T>
void apply(const Dense<T>& layer, const Acc<T>* from, Index rows, Acc<T> share, Acc<T>* to) {
  using A = Acc<T>;
  constexpr Index kOut = kLanes<A> / 2;
  parallel((layer.out + kOut - 1) / kOut, rows * layer.in * kOut, [&](Index block) {
    const Index first = block * kOut, count = std::min(kOut, layer.out - first);
    const T* weight[kOut];
    for (Index j = 0; j < kOut; ++j)
      weight[j] = layer.weight + (first + std::min(j, count - 1)) * layer.in;
    for (Index r = 0; r < rows; r += 2) {
      const A *one = from + r * layer.in, *two = from + std::min(r + 1, rows - 1) * layer.in;
      Vec<A> total[2 * kOut] = {};
      each_slice<A>(layer.in, [&](const auto& s) {
        const Vec<A> a = load(one, s), b = load(two, s);
        for (Index j = 0; j < kOut; ++j) {
          const Vec<A> w = load(weight[j], s);
          total[j] += masked<A>(w * a, s, A(0));
          total[kOut + j] += masked<A>(w * b, s, A(0));
        }
      });
      const Vec<A> sums = fold_each<A>(total, Add{});
      for (Index i = 0; i < std::min<Index>(2, rows - r); ++i)
        for (Index j = 0; j < count; ++j)
          to[(r + i) * layer.out + first + j] =
              sums[i * kOut + j] + (layer.bias ? share * value(layer.bias + first + j) : A(0));
    }
  });
}

// Each row of `from`, of as many values as the layer gives, times the transposed weight.
template <class T>
void apply_transposed(const Dense<T>& layer, const Acc<T>* from, Index rows, Acc<T>* to) {
  using A = Acc<T>;
  constexpr Index kMany = 4;
  parallel(rows, layer.in * layer.out, [&](Index r) {
    const A* each = from + r * layer.out;
    A* sums = to + r * layer.in;
    std::fill_n(sums, layer.in, A(0));
    for (Index j = 0; j < layer.out; j += kMany) {
      const Index count = std::min(kMany, layer.out - j);
      const T* weight = layer.weight + j * layer.in;
      for (Index k = 0; k < layer.in; k += kLanes<A>) {
        const Slice<A> s{k, 0, std::min(kLanes<A>, layer.in - k)};
        Vec<A> v = load(sums, s);
        for (Index i = 0; i < count; ++i) v += each[j + i] * load(weight + i * layer.in, s);
        store(sums, v, s);
      }
    }
  });
}

// The gradients of the weight and the bias, from those of the results and the layer's arguments.
template <class A>
void layer_gradients(const A* grads, const A* arguments, Index rows, Index in, Index out, A share,
                     A* of_weight, A* of_bias) {
  parallel(out, rows * in, [&](Index j) {
    for (Index k = 0; k < in; k += kLanes<A>) {
      const Slice<A> s{k, 0, std::min(kLanes<A>, in - k)};
      Vec<A> total = {};
      for (Index r = 0; r < rows; ++r) total += grads[r * out + j] * load(arguments + r * in, s);
      store(of_weight + j * in, total, s);
    }
    A bias = 0;
    for (Index r = 0; r < rows; ++r) bias += grads[r * out + j];
    of_bias[j] = share * bias;
  });
}

// Rows 2i and 2i + 1 of n values are added up to row i.
template <class A>
inline void add_pairs(A* z, Index rows, Index n) {
  for (Index r = 0; r < rows; ++r)
    for (Index i = 0; i < n; ++i) z[r * n + i] = z[2 * r * n + i] + z[(2 * r + 1) * n + i];
}

// The logistic function, and exactly 0 where that of PyTorch is.
template <class A>
inline Vec<A> gate_of(Vec<A> logit) {
  return logit < splat(A(-104)) ? Vec<A>{} : logistic<Vec<A>>(logit);
}

// A gate as it acts: itself, or drawn towards 1 by a strength.
template <class A>
struct Temper {
  std::optional<A> strength;
  Vec<A> operator()(Vec<A> gate) const {
    return strength ? (gate - A(1)) * *strength + A(1) : gate;
  }
};

template <class T>
inline Temper<Acc<T>> temper_of(const Optional& strength) {
  return {strength ? std::optional(value(in<T>(*strength))) : std::nullopt};
}

template <class A>
inline void relu(A* z, Index n) {
  for (Index i = 0; i < n; ++i) z[i] = z[i] <= 0 ? A(0) : z[i];
}

// Turns gradients of n gates as they act into those of their logits; returns that of the strength.
template <class A>
inline A through_gates(const A* gates, Index n, const Temper<A>& temper, A* grads) {
  const A drawn = temper.strength.value_or(A(1));
  const A of_strength =
      sum_row<A>(n, [&](const auto& s) { return load(grads, s) * (load(gates, s) - A(1)); });
  for (Index i = 0; i < n; ++i) grads[i] *= drawn * gates[i] * (1 - gates[i]);
  return of_strength;
}

template <class A>
inline void gates_of(const A* logits, Index n, A* to) {
  each_slice<A>(n, [&](const auto& s) { store(to, gate_of<A>(load(logits, s)), s); });
}

template <class A>
inline void temper_all(const A* gates, Index n, const Temper<A>& temper, A* to) {
  each_slice<A>(n, [&](const auto& s) { store(to, temper(load(gates, s)), s); });
}

}  // namespace foveate
