// Softmax attention between positions, and its gradients, tile by tile: no array of all pairs.
#include "tile.h"
#include "tokens.h"

namespace foveate {
namespace {

constexpr Index kQueries = 128, kKeys = 128;

// Tiles that one thread works on, allocated once for all its tasks.
template <class A>
struct Forward {
  Index value_width;
  std::vector<A> query, key, value, scores, sums, peak, total;
  Forward(Index dim, Index value_dim)
      : value_width(padded<A>(value_dim)),
        query(kQueries * padded<A>(dim)),
        key(dim * kKeys),
        value(kKeys * value_width),
        scores(kQueries * kKeys),
        sums(kQueries * value_width),
        peak(kQueries),
        total(kQueries) {}
};

// Turns scores into weights relative to the largest score so far of each query, and brings the
// sums so far to the same measure.
template <class A>
inline void soften(Forward<A>& t, Index queries, Index keys) {
  const Index wide = padded<A>(keys);
  for (Index i = 0; i < queries; ++i) {
    A* row = &t.scores[i * kKeys];
    std::fill(row + keys, row + wide, -kInfinite<A>);
    const A before = t.peak[i], peak = std::max(before, largest(row, wide));
    const A base = peak == -kInfinite<A> ? 0 : peak;
    const A total = exponentials(row, wide, base);
    const A fade = peak == before ? 1 : std::exp(before - base);
    t.total[i] = t.total[i] * fade + total;
    t.peak[i] = peak;
    if (fade != 1) multiply(&t.sums[i * t.value_width], t.value_width, fade);
  }
}

template <class T, class A = Acc<T>>
inline void attend_tile(Forward<A>& t, const Tokens<const T>& q, const Tokens<const T>& k,
                        const Tokens<const T>& v, const Tokens<T>& to, A* lse, A scale, Index head,
                        Index first) {
  const Index queries = std::min(kQueries, q.count - first), dim = padded<A>(q.dim);
  load_tile(t.query.data(), dim, q.rows(head, first), queries, q.dim, scale);
  std::fill(t.sums.begin(), t.sums.end(), A(0));
  std::fill(t.total.begin(), t.total.end(), A(0));
  std::fill(t.peak.begin(), t.peak.end(), -kInfinite<A>);
  for (Index at = 0; at < k.count; at += kKeys) {
    const Index keys = std::min(kKeys, k.count - at);
    load_tile(t.key.data(), kKeys, k.columns(head, at), k.dim, keys, A(1));
    load_tile(t.value.data(), t.value_width, v.rows(head, at), keys, v.dim, A(1));
    product<A>(queries, padded<A>(keys), q.dim, {t.query.data(), dim, 1}, t.key.data(), kKeys,
               t.scores.data(), kKeys, false);
    soften(t, queries, keys);
    product<A>(queries, t.value_width, keys, {t.scores.data(), kKeys, 1}, t.value.data(),
               t.value_width, t.sums.data(), t.value_width, true);
  }
  for (Index i = 0; i < queries; ++i) {
    multiply(&t.sums[i * t.value_width], t.value_width, 1 / t.total[i]);
    lse[head * q.count + first + i] = t.peak[i] + std::log(t.total[i]);
  }
  store_tile<false>(to.rows(head, first), t.sums.data(), t.value_width, queries, v.dim);
}

template <class T, class A = Acc<T>>
void attend(const Tokens<const T>& q, const Tokens<const T>& k, const Tokens<const T>& v,
            const Tokens<T>& to, A* lse, A scale) {
  const Index tiles = (q.count + kQueries - 1) / kQueries;
  torch::stable::parallel_for(0, q.heads() * tiles, 1, [&](int64_t begin, int64_t end) {
    Forward<A> t(q.dim, v.dim);
    for (Index i = begin; i < end; ++i)
      attend_tile(t, q, k, v, to, lse, scale, i / tiles, i % tiles * kQueries);
  });
}

template <class A>
struct Backward {
  Index dim, value_dim;
  std::vector<A> query, key, value, grad, weights, slopes, grad_key, grad_value;
  Backward(Index d, Index v)
      : dim(padded<A>(d)),
        value_dim(padded<A>(v)),
        query(kQueries * dim),
        key(d * kKeys),
        value(v * kKeys),
        grad(kQueries * value_dim),
        weights(kQueries * kKeys),
        slopes(kQueries * kKeys),
        grad_key(kKeys * dim),
        grad_value(kKeys * value_dim) {}
};

// Everything that the kernels of the backward pass share.
template <class T>
struct Gradients {
  using A = Acc<T>;
  Tokens<const T> grad, query, key, value, out;
  const A* lse;
  A scale;
  Tokens<A> grad_query;
  Tokens<T> grad_key, grad_value;
  A *delta, *slopes;

  // For each query the mean slope of its scores: the product of its output with the gradient.
  void find_delta() const {
    const Index tiles = (query.count + kQueries - 1) / kQueries, width = padded<A>(value.dim);
    torch::stable::parallel_for(0, query.heads() * tiles, 1, [&](int64_t begin, int64_t end) {
      std::vector<A> left(kQueries * width), right(kQueries * width);
      for (Index i = begin; i < end; ++i) {
        const Index head = i / tiles, first = i % tiles * kQueries;
        const Index queries = std::min(kQueries, query.count - first);
        load_tile(left.data(), width, grad.rows(head, first), queries, value.dim, A(1));
        load_tile(right.data(), width, out.rows(head, first), queries, value.dim, A(1));
        for (Index q = 0; q < queries; ++q)
          delta[head * query.count + first + q] = dot(&left[q * width], &right[q * width], width);
      }
    });
  }

  // The gradients of one tile of keys and their values, from all queries; the slopes of its
  // scores go to `kept`, with one row for each query.
  void keys_tile(Backward<A>& t, Index head, Index at, A* kept) const {
    const Index keys = std::min(kKeys, key.count - at), wide = padded<A>(keys);
    load_tile(t.key.data(), kKeys, key.columns(head, at), key.dim, keys, A(1));
    load_tile(t.value.data(), kKeys, value.columns(head, at), value.dim, keys, A(1));
    std::fill(t.grad_key.begin(), t.grad_key.end(), A(0));
    std::fill(t.grad_value.begin(), t.grad_value.end(), A(0));
    for (Index first = 0; first < query.count; first += kQueries) {
      const Index queries = std::min(kQueries, query.count - first);
      const Index row = head * query.count + first;
      A* slopes = kept + first * kKeys;
      load_tile(t.query.data(), t.dim, query.rows(head, first), queries, query.dim, scale);
      load_tile(t.grad.data(), t.value_dim, grad.rows(head, first), queries, value.dim, A(1));
      product<A>(queries, wide, query.dim, {t.query.data(), t.dim, 1}, t.key.data(), kKeys,
                 t.weights.data(), kKeys, false);
      product<A>(queries, wide, value.dim, {t.grad.data(), t.value_dim, 1}, t.value.data(), kKeys,
                 slopes, kKeys, false);
      for (Index q = 0; q < queries; ++q)
        slope(&t.weights[q * kKeys], slopes + q * kKeys, wide, lse[row + q], delta[row + q]);
      product<A>(keys, t.value_dim, queries, {t.weights.data(), 1, kKeys}, t.grad.data(),
                 t.value_dim, t.grad_value.data(), t.value_dim, true);
      product<A>(keys, t.dim, queries, {slopes, 1, kKeys}, t.query.data(), t.dim,
                 t.grad_key.data(), t.dim, true);
    }
    store_tile<false>(grad_key.rows(head, at), t.grad_key.data(), t.dim, keys, key.dim);
    store_tile<false>(grad_value.rows(head, at), t.grad_value.data(), t.value_dim, keys, value.dim);
  }

  // Adds to the gradients of one tile of queries what the kept slopes of some keys say.
  void queries_tile(Backward<A>& t, Index head, Index first, Index at, const A* kept) const {
    const Index keys = std::min(kKeys, key.count - at);
    const Index queries = std::min(kQueries, query.count - first);
    load_tile(t.grad_key.data(), t.dim, key.rows(head, at), keys, key.dim, scale);
    product<A>(queries, t.dim, keys, {kept + first * kKeys, kKeys, 1}, t.grad_key.data(), t.dim,
               t.query.data(), t.dim, false);
    store_tile<true>(grad_query.rows(head, first), t.query.data(), t.dim, queries, query.dim);
  }

  // Each of `group` workers takes whole heads, of which it holds the slopes of one tile of keys.
  void run_heads(Index group) const {
    const Index size = query.count * kKeys;
    torch::stable::parallel_for(0, group, 1, [&](int64_t begin, int64_t end) {
      Backward<A> t(query.dim, value.dim);
      for (Index worker = begin; worker < end; ++worker)
        for (Index head = worker; head < key.heads(); head += group)
          for (Index at = 0; at < key.count; at += kKeys) {
            keys_tile(t, head, at, slopes + worker * size);
            for (Index first = 0; first < query.count; first += kQueries)
              queries_tile(t, head, first, at, slopes + worker * size);
          }
    });
  }

  // `group` tiles of keys at a time, as their slopes are held until all queries have had them.
  void run(Index group) const {
    find_delta();
    if (key.heads() >= group) return run_heads(group);
    const Index tiles = (key.count + kKeys - 1) / kKeys, all = key.heads() * tiles;
    const Index query_tiles = (query.count + kQueries - 1) / kQueries;
    const Index size = query.count * kKeys;
    for (Index start = 0; start < all; start += group) {
      const Index stop = std::min(all, start + group);
      torch::stable::parallel_for(start, stop, 1, [&](int64_t begin, int64_t end) {
        Backward<A> t(query.dim, value.dim);
        for (Index i = begin; i < end; ++i)
          keys_tile(t, i / tiles, i % tiles * kKeys, slopes + (i - start) * size);
      });
      const Index first_head = start / tiles, heads = (stop - 1) / tiles + 1 - first_head;
      torch::stable::parallel_for(0, heads * query_tiles, 1, [&](int64_t begin, int64_t end) {
        Backward<A> t(query.dim, value.dim);
        for (Index j = begin; j < end; ++j) {
          const Index head = first_head + j / query_tiles, first = j % query_tiles * kQueries;
          const Index from = std::max(start, head * tiles);
          for (Index i = from; i < std::min(stop, (head + 1) * tiles); ++i)
            queries_tile(t, head, first, i % tiles * kKeys, slopes + (i - start) * size);
        }
      });
    }
  }
};

}  // namespace

void position_attention(Tensor query, Tensor key, Tensor value, double scale, Tensor to,
                        Tensor lse) {
  dispatch(query, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    attend<T>(tokens<const T>(query), tokens<const T>(key), tokens<const T>(value), tokens<T>(to),
              out<Acc<T>>(lse), Acc<T>(scale));
  });
}

void position_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor to,
                                 Tensor lse, double scale, Tensor grad_query, Tensor grad_key,
                                 Tensor grad_value, Tensor delta, Tensor slopes) {
  dispatch(query, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const Gradients<T> all{tokens<const T>(grad),
                           tokens<const T>(query),
                           tokens<const T>(key),
                           tokens<const T>(value),
                           tokens<const T>(to),
                           in<A>(lse),
                           A(scale),
                           tokens<A>(grad_query),
                           tokens<T>(grad_key),
                           tokens<T>(grad_value),
                           out<A>(delta),
                           out<A>(slopes)};
    all.run(slopes.size(0));
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "position_attention(Tensor query, Tensor key, Tensor value, float scale, Tensor(a!) to, "
      "Tensor(b!) lse) -> ()");
  m.def(
      "position_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor to, "
      "Tensor lse, float scale, Tensor(a!) grad_query, Tensor(b!) grad_key, Tensor(c!) "
      "grad_value, Tensor(d!) delta, Tensor(e!) slopes) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("position_attention", TORCH_BOX(&foveate::position_attention));
  m.impl("position_attention_backward", TORCH_BOX(&foveate::position_attention_backward));
}
