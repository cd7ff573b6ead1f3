// out = source * F + terms, in one pass. F is the product or the sum of gates that broadcast to
// the map; the terms are everything else that the gradient of a map is made of.
#include "common.h"

namespace foveate {
namespace {

// One contiguous run of a map: scalars for what is constant along it, pointers for what varies.
template <class A>
struct Run {
  bool total;  // the gates are added up rather than multiplied
  A factor;
  const A* factors[3];
  A add;
  const A* adds[3];
  A linear;
  const A* linears;
  A scale[2];
  const A* scaled[2];
  // Adds worth * value[j] where at[j] == here.
  const int32_t* at[3];
  const A* value[3];
  A worth;
  Lane<A> here[3];
  bool past;
};

template <class T, int kFactors, bool kTerms>
void combine_run(const T* source, const T* x, T* to, Index n, const Run<Acc<T>>& r) {
  using A = Acc<T>;
  // Copies, as far as the compiler knows `to` may point into r.
  const A *const factors[3] = {r.factors[0], r.factors[1], r.factors[2]};
  const Vec<A> factor = splat(r.factor);
  const bool total = r.total, past = r.past;
  each_slice<A>(n, [&](const auto& s) {
    Vec<A> v = load(source, s), f = factor;
    for (int k = 0; k < kFactors; ++k)
      if (factors[k]) f = total ? f + load(factors[k], s) : f * load(factors[k], s);
    v *= f;
    if constexpr (kTerms) {
      v += r.add;
      for (const A* add : r.adds)
        if (add) v += load(add, s);
      if (x) v += load(x, s) * (r.linears ? load(r.linears, s) : splat(r.linear));
      for (int k = 0; k < 2; ++k)
        if (r.scaled[k]) v += r.scale[k] * load(r.scaled[k], s);
      for (int k = 0; k < 3; ++k)
        if (r.at[k]) {
          const auto hit = load_index(r.at[k], s) == splat(r.here[k]);
          v += hit ? load(r.value[k], s) * (k ? splat(A(1)) : splat(r.worth)) : Vec<A>{};
        }
    }
    if (past) store_past(to, v, s);
    else store(to, v, s);
  });
}

template <class A>
struct Terms {
  bool past, total;
  Index groups;
  const A *channel, *spatial, *rows, *columns;
  const A *add, *linear, *add_rows, *add_columns;
  const A *map[2], *weight[2];
  const int32_t *at, *channel_at, *rows_at, *columns_at;
  const A *peak, *channel_peak, *channel_gate, *rows_peak, *columns_peak;

  bool any() const {
    return add || linear || add_rows || add_columns || map[0] || at || channel_at || rows_at;
  }
  bool strips() const { return rows || columns || add_rows || rows_at; }
};

template <class A>
inline A pick(const A* p, Index i, A otherwise = 0) {
  return p ? p[i] : otherwise;
}

// The gates that are constant along a run, put together.
template <class A>
inline A joined(bool total, const A* p, Index i, const A* q, Index j) {
  if (total) return pick(p, i) + pick(q, j);
  return pick(p, i, A(1)) * pick(q, j, A(1));
}

template <class T>
inline void add_at(T* to, Acc<T> value) {
  const Vec<Acc<T>> v = splat(load(to, Slice<Acc<T>>{0, 0, 1})[0] + value);
  store(to, v, Slice<Acc<T>>{0, 0, 1});
}

// Planes this narrow and small are weighed whole, with their strips spread over them.
constexpr Index kFew = 16, kSmall = 512;

// Values of the columns and of the rows of one plane, put together by f for each position. Vectors
// are stored one over the end of the other, so that `to` needs room for one more.
template <class A, class F>
void spread_strips(const A* rows, const A* columns, const Shape& s, Index plane, A none, const F& f,
                   A* to) {
  constexpr Index lanes = kLanes<A>, most = (kFew + lanes - 1) / lanes;
  Vec<A> file[most];
  for (Index v = 0; v * lanes < s.W; ++v) {
    const Slice<A> part{v * lanes, 0, std::min(lanes, s.W - v * lanes)};
    file[v] = columns ? load(columns + plane * s.W, part) : splat(none);
  }
  for (Index h = 0; h < s.H; ++h) {
    const Vec<A> line = splat(pick(rows, plane * s.H + h, none));
    for (Index v = 0; v * lanes < s.W; ++v) narrow(to + h * s.W + v * lanes, f(line, file[v]));
  }
}

template <class T>
void add_strip_peaks(T* to, const Shape& s, const Terms<Acc<T>>& t, Index plane) {
  if (!t.rows_at) return;
  for (Index h = 0; h < s.H; ++h)
    add_at(to + h * s.W + t.rows_at[plane * s.H + h], t.rows_peak[plane * s.H + h]);
  for (Index w = 0; w < s.W; ++w)
    add_at(to + t.columns_at[plane * s.W + w] * s.W + w, t.columns_peak[plane * s.W + w]);
}

template <class T, int kFactors, bool kTerms>
void combine_small_plane(const T* source, const T* x, T* to, const Shape& s,
                         const Terms<Acc<T>>& t, Index plane) {
  using A = Acc<T>;
  const Index N = s.N(), b = plane / s.C, c = plane % s.C;
  const Index group = (b * t.groups + c / (s.C / t.groups)) * N;
  A gates[kSmall + kLanes<A>], adds[kSmall + kLanes<A>];
  const auto sum = [](Vec<A> a, Vec<A> b) { return a + b; };
  const auto product = [](Vec<A> a, Vec<A> b) { return a * b; };
  Run<A> r{};
  r.total = t.total, r.past = t.past;
  r.factor = joined<A>(t.total, t.channel, plane, nullptr, 0);
  r.factors[0] = shifted(t.spatial, group);
  if (t.rows || t.columns) {
    if (t.total) spread_strips(t.rows, t.columns, s, plane, A(0), sum, gates);
    else spread_strips(t.rows, t.columns, s, plane, A(1), product, gates);
    r.factors[1] = gates;
  }
  if constexpr (kTerms) {
    r.add = pick(t.add, plane);
    if (t.add_rows || t.add_columns) {
      spread_strips(t.add_rows, t.add_columns, s, plane, A(0), sum, adds);
      r.adds[0] = adds;
    }
    r.linear = pick(t.linear, plane);
    for (int k = 0; k < 2; ++k) {
      r.scale[k] = pick(t.weight[k], plane);
      r.scaled[k] = shifted(t.map[k], group);
    }
    r.at[0] = shifted(t.channel_at, b * N);
    r.value[0] = shifted(t.channel_peak, b * N);
    r.worth = pick(t.channel_gate, plane, A(1));
    r.here[0] = c;
  }
  const Index first = plane * N;
  combine_run<T, kFactors, kTerms>(source + first, kTerms && t.linear ? x + first : nullptr,
                                   to + first, N, r);
  if (!kTerms) return;
  add_strip_peaks(to + first, s, t, plane);
  if (t.at) add_at(to + first + t.at[plane], t.peak[plane]);
}

template <class T, int kFactors, bool kTerms>
void combine_plane(const T* source, const T* x, T* to, const Shape& s, const Terms<Acc<T>>& t,
                   Index plane) {
  using A = Acc<T>;
  const Index N = s.N(), b = plane / s.C, c = plane % s.C;
  const Index group = (b * t.groups + c / (s.C / t.groups)) * N;
  const bool strips = t.strips();
  const Index length = strips ? s.W : N;
  Run<A> r{};
  r.total = t.total, r.past = t.past;
  for (Index h = 0; h < (strips ? s.H : 1); ++h) {
    const Index line = plane * s.H + h, first = plane * N + h * s.W;
    r.factor = joined(t.total, t.channel, plane, t.rows, line);
    r.factors[0] = shifted(t.spatial, group + h * s.W);
    r.factors[1] = shifted(t.columns, plane * s.W);
    if constexpr (kTerms) {
      r.add = pick(t.add, plane) + pick(t.add_rows, line);
      r.adds[0] = shifted(t.add_columns, plane * s.W);
      r.linear = pick(t.linear, plane);
      for (int k = 0; k < 2; ++k) {
        r.scale[k] = pick(t.weight[k], plane);
        r.scaled[k] = shifted(t.map[k], group + h * s.W);
      }
      r.at[0] = shifted(t.channel_at, b * N + h * s.W);
      r.value[0] = shifted(t.channel_peak, b * N + h * s.W);
      r.worth = pick(t.channel_gate, plane, A(1));
      r.here[0] = c;
      r.at[1] = shifted(t.columns_at, plane * s.W);
      r.value[1] = shifted(t.columns_peak, plane * s.W);
      r.here[1] = h;
    }
    combine_run<T, kFactors, kTerms>(source + first, kTerms && t.linear ? x + first : nullptr,
                                     to + first, length, r);
    if (kTerms && t.rows_at) add_at(to + first + t.rows_at[line], t.rows_peak[line]);
  }
  if (kTerms && t.at) add_at(to + plane * N + t.at[plane], t.peak[plane]);
}

// Groups of fewer channels than this are put side by side.
constexpr Index kSide = 64;

// One position, whose groups are narrow: gates and maps of groups are spread over their channels.
template <class T, int kFactors, bool kTerms>
void combine_groups(const T* source, const T* x, T* to, const Shape& s, const Terms<Acc<T>>& t,
                    Index row) {
  using A = Acc<T>;
  const Index b = row / s.N(), p = row % s.N(), width = s.C / t.groups, most = kSmall / width;
  A gates[kSmall], adds[kSmall];
  for (Index g = 0; g < t.groups; g += most) {
    const Index n = std::min(most, t.groups - g) * width, channel = b * s.C + g * width;
    const Index first = row * s.C + g * width, map = row * t.groups + g;
    Run<A> r{};
    r.total = t.total, r.past = t.past;
    r.factor = t.total ? 0 : 1;
    for (Index c = 0; c < n; ++c)
      gates[c] = joined(t.total, t.spatial, map + c / width, t.channel, channel + c);
    r.factors[0] = gates;
    if constexpr (kTerms) {
      for (Index c = 0; c < n; ++c) {
        A total = pick(t.add, channel + c);
        for (int k = 0; k < 2; ++k)
          total += pick(t.map[k], map + c / width) * pick(t.weight[k], channel + c);
        adds[c] = total;
      }
      r.adds[0] = adds;
      r.linears = shifted(t.linear, channel);
      r.at[0] = shifted(t.at, channel);
      r.value[0] = shifted(t.peak, channel);
      r.worth = 1;
      r.here[0] = p;
    }
    combine_run<T, kFactors, kTerms>(source + first, kTerms && t.linear ? x + first : nullptr,
                                     to + first, n, r);
  }
  if (kTerms && t.channel_at) {
    const Index c = t.channel_at[row];
    add_at(to + row * s.C + c, t.channel_peak[row] * pick(t.channel_gate, b * s.C + c, A(1)));
  }
}

template <class T, int kFactors, bool kTerms>
void combine_position(const T* source, const T* x, T* to, const Shape& s, const Terms<Acc<T>>& t,
                      Index row) {
  using A = Acc<T>;
  const Index b = row / s.N(), p = row % s.N(), width = s.C / t.groups;
  const Index h = p / s.W, w = p % s.W;
  Run<A> r{};
  r.total = t.total, r.past = t.past;
  if (t.groups > 1 && width < kSide && !t.rows && !t.columns)
    return combine_groups<T, kFactors, kTerms>(source, x, to, s, t, row);
  for (Index g = 0; g < t.groups; ++g) {
    const Index c = g * width, map = row * t.groups + g, first = row * s.C + c;
    const Index channel = b * s.C + c, line = (b * s.H + h) * s.C + c, file = (b * s.W + w) * s.C + c;
    r.factor = joined<A>(t.total, t.spatial, map, nullptr, 0);
    r.factors[0] = shifted(t.channel, channel);
    r.factors[1] = shifted(t.rows, line);
    r.factors[2] = shifted(t.columns, file);
    if constexpr (kTerms) {
      r.adds[0] = shifted(t.add, channel);
      r.adds[1] = shifted(t.add_rows, line);
      r.adds[2] = shifted(t.add_columns, file);
      r.linears = shifted(t.linear, channel);
      for (int k = 0; k < 2; ++k) {
        r.scale[k] = pick(t.map[k], map);
        r.scaled[k] = shifted(t.weight[k], channel);
      }
      r.at[0] = shifted(t.at, channel);
      r.value[0] = shifted(t.peak, channel);
      r.worth = 1;
      r.here[0] = p;
      r.at[1] = shifted(t.rows_at, line);
      r.value[1] = shifted(t.rows_peak, line);
      r.here[1] = w;
      r.at[2] = shifted(t.columns_at, file);
      r.value[2] = shifted(t.columns_peak, file);
      r.here[2] = h;
    }
    combine_run<T, kFactors, kTerms>(source + first, kTerms && t.linear ? x + first : nullptr,
                                     to + first, width, r);
  }
  if (kTerms && t.channel_at) {
    const Index c = t.channel_at[row];
    add_at(to + row * s.C + c, t.channel_peak[row] * pick(t.channel_gate, b * s.C + c, A(1)));
  }
}

template <class T, int kFactors, bool kTerms>
void combine_all(const T* source, const T* x, T* to, const Shape& s, const Terms<Acc<T>>& t) {
  const auto each = [&](Index count, Index cost, const auto& f) {
    parallel(count, cost, [&](Index i) { f(source, x, to, s, t, i); }, finish_past);
  };
  if (s.last) return each(s.B * s.N(), s.C, combine_position<T, kFactors, kTerms>);
  if (t.strips() && s.W < kFew && s.N() <= kSmall)
    return each(s.B * s.C, s.N(), combine_small_plane<T, kFactors, kTerms>);
  each(s.B * s.C, s.N(), combine_plane<T, kFactors, kTerms>);
}

}  // namespace

void combine(Tensor source, Optional x, bool total, int64_t groups, Optional channel,
             Optional spatial, Optional rows, Optional columns, Optional add, Optional linear,
             Optional add_rows, Optional add_columns, Optional map, Optional weight, Optional map2,
             Optional weight2, Optional at, Optional peak, Optional channel_at,
             Optional channel_peak, Optional channel_gate, Optional rows_at, Optional rows_peak,
             Optional columns_at, Optional columns_peak, Tensor to) {
  dispatch(source, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = Acc<T>;
    const Shape s = shape_of(source);
    const bool strips = rows || columns || add_rows || rows_at;
    const Index length = s.last ? s.C / groups : strips ? s.W : s.N();
    const bool past = expect_output(out<T>(to), s, length);
    // Runs to which more is added afterwards are needed in a cache.
    const Terms<A> t{past && !rows_at && !(s.last && channel_at),
                     total,
                     groups,
                     in<A>(channel),
                     in<A>(spatial),
                     in<A>(rows),
                     in<A>(columns),
                     in<A>(add),
                     in<A>(linear),
                     in<A>(add_rows),
                     in<A>(add_columns),
                     {in<A>(map), in<A>(map2)},
                     {in<A>(weight), in<A>(weight2)},
                     in<int32_t>(at),
                     in<int32_t>(channel_at),
                     in<int32_t>(rows_at),
                     in<int32_t>(columns_at),
                     in<A>(peak),
                     in<A>(channel_peak),
                     in<A>(channel_gate),
                     in<A>(rows_peak),
                     in<A>(columns_peak)};
    const auto run = [&](auto kernel) {
      kernel(in<T>(source), in<T>(x), out<T>(to), s, t);
    };
    // Gates that vary along a run; without any, the factor is one number.
    const bool varies = s.last ? channel || rows || columns || groups > 1 : spatial || columns || rows;
    if (!varies) return t.any() ? run(combine_all<T, 0, true>) : run(combine_all<T, 0, false>);
    const bool one = s.last ? !rows && !columns && groups == 1 : !columns && !rows;
    if (one) return t.any() ? run(combine_all<T, 1, true>) : run(combine_all<T, 1, false>);
    t.any() ? run(combine_all<T, 3, true>) : run(combine_all<T, 3, false>);
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "combine(Tensor source, Tensor? x, bool total, int groups, Tensor? channel, Tensor? spatial, "
      "Tensor? rows, Tensor? columns, Tensor? add, Tensor? linear, Tensor? add_rows, "
      "Tensor? add_columns, Tensor? map, Tensor? weight, Tensor? map2, Tensor? weight2, "
      "Tensor? at, Tensor? peak, Tensor? channel_at, Tensor? channel_peak, Tensor? channel_gate, "
      "Tensor? rows_at, Tensor? rows_peak, Tensor? columns_at, Tensor? columns_peak, "
      "Tensor(a!) to) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) { m.impl("combine", TORCH_BOX(&foveate::combine)); }
