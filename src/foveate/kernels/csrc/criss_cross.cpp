// Attention of each position to its row and column, and its gradients, line by line.
//
// A pass over all columns leaves for each position the largest score, the sum of the weights
// relative to it, and the weighted values; a pass over all rows completes them. The position
// itself is left out of its column, as it is in its row.
#include "tile.h"
#include "tokens.h"

namespace foveate {
namespace {

constexpr Index kQueries = 128;

// The rows, or the columns, of maps (B, D, H, W).
struct Lines {
  bool columns;
  Index batches, per_batch, count, step;

  Lines(const Tensor& map, bool columns_)
      : columns(columns_),
        batches(map.size(0)),
        per_batch(columns ? map.size(3) : map.size(2)),
        count(columns ? map.size(2) : map.size(3)),
        step(columns ? map.size(3) : 1) {}

  template <class T>
  Tokens<T> of(const Tensor& map) const {
    Tokens<T> t = tokens<T>(map);
    return {t.p,           batches,        per_batch,
            count,         map.size(1),    map.stride(0),
            map.stride(columns ? 3 : 2), map.stride(columns ? 2 : 3), map.stride(1)};
  }

  // Of an array with one number for each position, (B, H, W), the place of one on a line.
  Index place(Index line, Index i) const {
    const Index b = line / per_batch, l = line % per_batch;
    return b * per_batch * count + (columns ? l + i * step : l * count + i);
  }

  // Calls f(tiles, line) for all lines, with tiles that one thread keeps.
  template <class Tiles, class F>
  void each(Index dim, Index value_dim, const F& f) const {
    torch::stable::parallel_for(0, batches * per_batch, 1, [&](int64_t begin, int64_t end) {
      Tiles t(count, dim, value_dim);
      for (Index line = begin; line < end; ++line) f(t, line);
    });
  }

  // The scores that do not count: the position itself in its column, and lanes without a key.
  template <class A>
  void mask(A* row, Index i) const {
    if (columns) row[i] = -kInfinite<A>;
    std::fill(row + count, row + padded<A>(count), -kInfinite<A>);
  }
};

template <class A>
struct ForwardTiles {
  Index dim, value_dim, wide;
  std::vector<A> query, key, value, scores, sums;
  ForwardTiles(Index count, Index d, Index v)
      : dim(padded<A>(d)),
        value_dim(padded<A>(v)),
        wide(padded<A>(count)),
        query(kQueries * dim),
        key(d * wide),
        value(count * value_dim),
        scores(kQueries * wide),
        sums(kQueries * value_dim) {}
};

template <class T, class A = Acc<T>>
struct Attend {
  Lines lines;
  Tokens<const T> query, key, value;
  Tokens<A> to;
  A *peak, *lse;  // `lse` holds the sums of the weights between the two passes.

  // Scores of one position to weights; what its column left is brought to the same measure.
  void soften(ForwardTiles<A>& t, Index line, Index i, A* row, A* sums) const {
    lines.mask(row, i);
    const Index at = lines.place(line, i);
    if (lines.columns) {
      peak[at] = largest(row, t.wide);
      lse[at] = exponentials(row, t.wide, peak[at] == -kInfinite<A> ? 0 : peak[at]);
      return;
    }
    const A high = std::max(peak[at], largest(row, t.wide));
    const A base = high == -kInfinite<A> ? 0 : high, fade = std::exp(peak[at] - base);
    const A total = lse[at] * fade + exponentials(row, t.wide, base);
    multiply(sums, t.value_dim, fade / total);
    multiply(row, t.wide, 1 / total);
    lse[at] = high + std::log(total);
  }

  void operator()(ForwardTiles<A>& t, Index line) const {
    const Index n = lines.count;
    load_tile(t.key.data(), t.wide, key.columns(line, 0), key.dim, n, A(1));
    load_tile(t.value.data(), t.value_dim, value.rows(line, 0), n, value.dim, A(1));
    for (Index first = 0; first < n; first += kQueries) {
      const Index queries = std::min(kQueries, n - first);
      load_tile(t.query.data(), t.dim, query.rows(line, first), queries, query.dim, A(1));
      product<A>(queries, t.wide, query.dim, {t.query.data(), t.dim, 1}, t.key.data(), t.wide,
                 t.scores.data(), t.wide, false);
      if (!lines.columns) {
        const Strided<A> column = to.rows(line, first);
        load_tile<A, A>(t.sums.data(), t.value_dim, column, queries, value.dim, A(1));
      }
      for (Index i = 0; i < queries; ++i)
        soften(t, line, first + i, &t.scores[i * t.wide], &t.sums[i * t.value_dim]);
      product<A>(queries, t.value_dim, n, {t.scores.data(), t.wide, 1}, t.value.data(),
                 t.value_dim, t.sums.data(), t.value_dim, !lines.columns);
      store_tile<false>(to.rows(line, first), t.sums.data(), t.value_dim, queries, value.dim);
    }
  }
};

template <class A>
struct BackwardTiles {
  Index dim, value_dim, wide;
  std::vector<A> query, key, keys, value, grad, weights, slopes, grad_query, grad_key, grad_value;
  BackwardTiles(Index count, Index d, Index v)
      : dim(padded<A>(d)),
        value_dim(padded<A>(v)),
        wide(padded<A>(count)),
        query(kQueries * dim),
        key(d * wide),
        keys(count * dim),
        value(v * wide),
        grad(kQueries * value_dim),
        weights(kQueries * wide),
        slopes(kQueries * wide),
        grad_query(kQueries * dim),
        grad_key(count * dim),
        grad_value(count * value_dim) {}
};

// What a pass over all columns or rows finds: the share of the columns in `delta`, the mean slope of
// the scores of each position; the gradients of queries and keys, which the rows begin, completing
// `delta`; or those of the values. These are not read for it: their gradients may take their place.
enum class Stage { kDelta, kScores, kValues };

template <class T, class A = Acc<T>>
struct Differentiate {
  Lines lines;
  Tokens<const T> grad, query, key, value;
  const A* lse;
  Tokens<A> grad_query, grad_key, grad_value;
  A* delta;
  Stage stage;

  // Scores of one position to weights, and the slopes of its weights to those of its scores.
  void slope(BackwardTiles<A>& t, Index line, Index i, A* scores, A* slopes) const {
    lines.mask(scores, i);
    const Index at = lines.place(line, i);
    exponentials(scores, t.wide, lse[at]);
    if (stage == Stage::kValues) return;
    if (stage == Stage::kDelta) {
      delta[at] = dot(scores, slopes, t.wide);
      return;
    }
    if (!lines.columns) delta[at] += dot(scores, slopes, t.wide);
    for (Index j = 0; j < t.wide; j += kLanes<A>)
      narrow(slopes + j, widen(scores + j) * (widen(slopes + j) - delta[at]));
  }

  void gather_values(BackwardTiles<A>& t, Index first, Index queries) const {
    product<A>(lines.count, t.value_dim, queries, {t.weights.data(), 1, t.wide}, t.grad.data(),
               t.value_dim, t.grad_value.data(), t.value_dim, first > 0);
  }

  void gather_scores(BackwardTiles<A>& t, Index line, Index first, Index queries) const {
    const Index n = lines.count;
    product<A>(n, t.dim, queries, {t.slopes.data(), 1, t.wide}, t.query.data(), t.dim,
               t.grad_key.data(), t.dim, first > 0);
    product<A>(queries, t.dim, n, {t.slopes.data(), t.wide, 1}, t.keys.data(), t.dim,
               t.grad_query.data(), t.dim, false);
    put(grad_query.rows(line, first), t.grad_query.data(), t.dim, queries, query.dim);
  }

  void put(Strided<A> to, const A* from, Index stride, Index rows, Index dim) const {
    lines.columns ? store_tile<true>(to, from, stride, rows, dim)
                  : store_tile<false>(to, from, stride, rows, dim);
  }

  void operator()(BackwardTiles<A>& t, Index line) const {
    const Index n = lines.count;
    const bool slopes = stage != Stage::kValues;
    load_tile(t.key.data(), t.wide, key.columns(line, 0), key.dim, n, A(1));
    if (slopes) load_tile(t.value.data(), t.wide, value.columns(line, 0), value.dim, n, A(1));
    if (stage == Stage::kScores)
      load_tile(t.keys.data(), t.dim, key.rows(line, 0), n, key.dim, A(1));
    for (Index first = 0; first < n; first += kQueries) {
      const Index queries = std::min(kQueries, n - first);
      load_tile(t.query.data(), t.dim, query.rows(line, first), queries, query.dim, A(1));
      load_tile(t.grad.data(), t.value_dim, grad.rows(line, first), queries, value.dim, A(1));
      product<A>(queries, t.wide, query.dim, {t.query.data(), t.dim, 1}, t.key.data(), t.wide,
                 t.weights.data(), t.wide, false);
      if (slopes)
        product<A>(queries, t.wide, value.dim, {t.grad.data(), t.value_dim, 1}, t.value.data(),
                   t.wide, t.slopes.data(), t.wide, false);
      for (Index i = 0; i < queries; ++i)
        slope(t, line, first + i, &t.weights[i * t.wide], &t.slopes[i * t.wide]);
      if (stage == Stage::kScores) gather_scores(t, line, first, queries);
      if (stage == Stage::kValues) gather_values(t, first, queries);
    }
    if (stage == Stage::kScores) put(grad_key.rows(line, 0), t.grad_key.data(), t.dim, n, key.dim);
    if (stage == Stage::kValues)
      put(grad_value.rows(line, 0), t.grad_value.data(), t.value_dim, n, value.dim);
  }
};

}  // namespace

void criss_cross_attention(Tensor query, Tensor key, Tensor value, Tensor to, Tensor peak,
                           Tensor lse) {
  dispatch(query, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    for (const bool columns : {true, false}) {
      const Lines lines(query, columns);
      const Attend<T> attend{lines,
                             lines.of<const T>(query),
                             lines.of<const T>(key),
                             lines.of<const T>(value),
                             lines.of<A>(to),
                             out<A>(peak),
                             out<A>(lse)};
      lines.each<ForwardTiles<A>>(query.size(1), value.size(1), attend);
    }
  });
}

void criss_cross_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value,
                                    Tensor lse, Tensor grad_query, Tensor grad_key,
                                    Tensor grad_value, Tensor delta) {
  dispatch(query, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const auto pass = [&](bool columns, Stage stage) {
      const Lines lines(query, columns);
      const Differentiate<T> differentiate{lines,
                                           lines.of<const T>(grad),
                                           lines.of<const T>(query),
                                           lines.of<const T>(key),
                                           lines.of<const T>(value),
                                           in<A>(lse),
                                           lines.of<A>(grad_query),
                                           lines.of<A>(grad_key),
                                           lines.of<A>(grad_value),
                                           out<A>(delta),
                                           stage};
      lines.each<BackwardTiles<A>>(query.size(1), value.size(1), differentiate);
    };
    pass(true, Stage::kDelta);
    for (const Stage stage : {Stage::kScores, Stage::kValues})
      for (const bool columns : {false, true}) pass(columns, stage);
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "criss_cross_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) to, "
      "Tensor(b!) peak, Tensor(c!) lse) -> ()");
  m.def(
      "criss_cross_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, "
      "Tensor lse, Tensor(a!) grad_query, Tensor(b!) grad_key, Tensor(c!) grad_value, "
      "Tensor(d!) delta) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("criss_cross_attention", TORCH_BOX(&foveate::criss_cross_attention));
  m.impl("criss_cross_attention_backward", TORCH_BOX(&foveate::criss_cross_attention_backward));
}
