// Statistics of a map over its positions or its channels, and dot products along either,
// each in one read of the map.
#include "common.h"
#include "reduce.h"

namespace foveate {
namespace {

template <class T, bool kPeak, bool kSpread>
void pool_positions(const T* x, const Shape& s, Acc<T>* mean, Acc<T>* peak, int32_t* at,
                    Acc<T>* spread) {
  using A = Acc<T>;
  if (!s.last)
    return parallel(s.B * s.C, s.N(), [&](Index plane) {
      Peak<A> top{};
      const T* row = x + plane * s.N();
      mean[plane] = reduce_row<T, kPeak>(row, nullptr, s.N(), &top) / s.N();
      if (kPeak) peak[plane] = top.value, at[plane] = top.at;
      if (kSpread) spread[plane] = spread_row(row, mean[plane], s.N());
    });
  const Index width = tile_width(s.B, s.C, kWidth), tiles = (s.C + width - 1) / width;
  parallel(s.B * tiles, s.N() * width, [&](Index i) {
    const Index b = i / tiles, c = i % tiles * width, n = std::min(width, s.C - c);
    Columns<A> of;
    reduce_columns<T, kPeak, kSpread>({x + b * s.N() * s.C + c, s.N(), n, s.C}, nullptr, of);
    for (Index j = 0; j < n; ++j) {
      const Index to = b * s.C + c + j;
      mean[to] = of.total[slot<A>(j, n)] / s.N();
      if (kPeak) peak[to] = of.peak[slot<A>(j, n)], at[to] = of.at[slot<A>(j, n)];
      if (kSpread) spread[to] = of.spread[slot<A>(j, n)];
    }
  });
}

template <class T>
void pool_channels(const T* x, const Shape& s, const Acc<T>* gate, Acc<T>* peak, Acc<T>* mean,
                   int32_t* at) {
  using A = Acc<T>;
  if (s.last)
    return parallel(s.B * s.N(), s.C, [&](Index row) {
      Peak<A> top{};
      const A* weight = gate ? gate + row / s.N() * s.C : nullptr;
      mean[row] = reduce_row<T, true>(x + row * s.C, weight, s.C, &top) / s.C;
      peak[row] = top.value, at[row] = top.at;
    });
  const Index tiles = (s.N() + kWidth - 1) / kWidth;
  parallel(s.B * tiles, s.C * std::min(kWidth, s.N()), [&](Index i) {
    const Index b = i / tiles, first = i % tiles * kWidth, n = std::min(kWidth, s.N() - first);
    Columns<A> of;
    reduce_columns<T, true, false>({x + b * s.C * s.N() + first, s.C, n, s.N()},
                                   gate ? gate + b * s.C : nullptr, of);
    const Index to = b * s.N() + first;
    for (Index j = 0; j < n; ++j)
      peak[to + j] = of.peak[slot<A>(j, n)], mean[to + j] = of.total[slot<A>(j, n)] / s.C, at[to + j] = of.at[slot<A>(j, n)];
  });
}

// Groups of fewer channels than this are put side by side in channels_last maps.
constexpr Index kNarrow = 64;

// Dot products over the channels of each group of one position, whose channels are adjacent.
template <class T>
void dot_groups(const T* x, const T* other, const Acc<T>* weight, Index width, Index groups,
                Acc<T>* to) {
  using A = Acc<T>;
  A products[kTile];
  const Index most = kTile / width;
  for (Index first = 0; first < groups; first += most) {
    const Index count = std::min(most, groups - first), at = first * width;
    each_slice<A>(count * width, [&](const auto& s) {
      Vec<A> v = load(x + at, s);
      if (other) v *= load(other + at, s);
      if (weight) v *= load(weight + at, s);
      store(products, v, s);
    });
    for (Index g = 0; g < count; ++g) {
      A total = 0;
      for (Index c = 0; c < width; ++c) total += products[g * width + c];
      to[first + g] = total;
    }
  }
}

// For each group of channels and each position, the dot product over the channels.
template <class T>
void dot_channels(const T* x, const Shape& s, Index groups, const T* other, const Acc<T>* weight,
                  Acc<T>* to) {
  using A = Acc<T>;
  const Index width = s.C / groups;
  if (s.last)
    return parallel(s.B * s.N(), s.C, [&](Index row) {
      if (width < kNarrow)
        return dot_groups<T>(x + row * s.C, other ? other + row * s.C : nullptr,
                             weight ? weight + row / s.N() * s.C : nullptr, width, groups,
                             to + row * groups);
      for (Index g = 0; g < groups; ++g) {
        const Index at = row * s.C + g * width;
        const A* w = weight ? weight + row / s.N() * s.C + g * width : nullptr;
        to[row * groups + g] = dot_row<T>(x + at, {other ? other + at : nullptr, w, nullptr}, width);
      }
    });
  const Index tiles = (s.N() + kWidth - 1) / kWidth;
  parallel(s.B * groups * tiles, width * std::min(kWidth, s.N()), [&](Index i) {
    const Index block = i / tiles, first = i % tiles * kWidth, n = std::min(kWidth, s.N() - first);
    const Index at = block * width * s.N() + first;
    A total[kTile];
    const Factors<T> by{other ? other + at : nullptr, weight ? weight + block * width : nullptr,
                        nullptr};
    dot_columns<T>({x + at, width, n, s.N()}, by, 1, total);
    for (Index j = 0; j < n; ++j) to[block * s.N() + first + j] = total[slot<A>(j, n)];
  });
}

// Dot products over the positions for n adjacent channels, which cover whole groups.
template <class T>
void dot_positions_of_groups(const T* x, const Shape& s, const T* other, const Acc<T>* map,
                             Index groups, Index width, Index n, Acc<T>* to) {
  using A = Acc<T>;
  A weight[kTile], part[kTile] = {}, total[kTile] = {};
  for (Index p = 0; p < s.N(); ++p) {
    for (Index c = 0; c < n; ++c) weight[c] = map[p * groups + c / width];
    each_slot<A>(n, [&](const auto& slice, Index at) {
      Vec<A> v = load(x + p * s.C, slice) * load(weight, slice);
      if (other) v *= load(other + p * s.C, slice);
      narrow(part + at, widen(part + at) + v);
    });
    if (p % kChunk && p + 1 < s.N()) continue;
    for (Index j = 0; j < kTile; ++j) total[j] += part[j], part[j] = 0;
  }
  for (Index c = 0; c < n; ++c) to[c] = total[slot<A>(c, n)];
}

// For each channel, the dot product over the positions with the map of its group.
template <class T>
void dot_positions(const T* x, const Shape& s, Index groups, const T* other, const Acc<T>* map,
                   const Acc<T>* plus, Acc<T>* to) {
  using A = Acc<T>;
  const Index width = s.C / groups;
  if (!s.last)
    return parallel(s.B * s.C, s.N(), [&](Index plane) {
      const Index at = plane * s.N(), group = plane / width * s.N();
      to[plane] = dot_row<T>(x + at,
                             {other ? other + at : nullptr, map ? map + group : nullptr,
                              plus ? plus + group : nullptr},
                             s.N());
    });
  if (groups > 1 && width < kNarrow && map && !plus) {
    const Index most = std::max<Index>(1, kNarrow / width), blocks = (groups + most - 1) / most;
    return parallel(s.B * blocks, s.N() * kNarrow, [&](Index i) {
      const Index b = i / blocks, g = i % blocks * most, at = b * s.N() * s.C + g * width;
      dot_positions_of_groups(x + at, s, other ? other + at : nullptr,
                              map + b * s.N() * groups + g, groups, width,
                              std::min(most, groups - g) * width, to + b * s.C + g * width);
    });
  }
  const Index tile = tile_width(s.B * groups, width, kWidth), tiles = (width + tile - 1) / tile;
  parallel(s.B * groups * tiles, s.N() * tile, [&](Index i) {
    const Index b = i / (groups * tiles), g = i / tiles % groups, c = g * width + i % tiles * tile;
    const Index n = std::min(tile, (g + 1) * width - c), at = b * s.N() * s.C + c;
    const Index group = b * s.N() * groups + g;
    A total[kTile];
    const Factors<T> by{other ? other + at : nullptr, map ? map + group : nullptr,
                        plus ? plus + group : nullptr};
    dot_columns<T>({x + at, s.N(), n, s.C}, by, groups, total);
    for (Index j = 0; j < n; ++j) to[b * s.C + c + j] = total[slot<A>(j, n)];
  });
}

// Adds to each channel its values at the positions where it is the one named, weighted.
template <class T>
void dot_peaks(const T* x, const Shape& s, const int32_t* at, const Acc<T>* weight, Acc<T>* to) {
  parallel(s.B, s.N() * 16, [&](Index b) {
    for (Index p = 0; p < s.N(); ++p) {
      const Index c = at[b * s.N() + p];
      const Index i = s.last ? (b * s.N() + p) * s.C + c : (b * s.C + c) * s.N() + p;
      to[b * s.C + c] += weight[b * s.N() + p] * value(x + i);
    }
  });
}

}  // namespace

void spatial_pool(Tensor x, Tensor mean, Optional peak, Optional at, Optional spread) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    const auto run = [&](auto kernel) {
      kernel(in<T>(x), shape_of(x), out<A>(mean), out<A>(peak), out<int32_t>(at), out<A>(spread));
    };
    if (peak && spread) return run(pool_positions<T, true, true>);
    if (peak) return run(pool_positions<T, true, false>);
    if (spread) return run(pool_positions<T, false, true>);
    run(pool_positions<T, false, false>);
  });
}

void channel_pool(Tensor x, Optional gate, Tensor peak, Tensor mean, Tensor at) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    pool_channels<T>(in<T>(x), shape_of(x), in<A>(gate), out<A>(peak), out<A>(mean),
                     out<int32_t>(at));
  });
}

void channel_dot(Tensor x, Optional other, Optional weight, int64_t groups, Tensor to) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    dot_channels<T>(in<T>(x), shape_of(x), groups, in<T>(other), in<A>(weight), out<A>(to));
  });
}

void spatial_dot(Tensor x, Optional other, Optional map, Optional plus, int64_t groups, Tensor to) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    dot_positions<T>(in<T>(x), shape_of(x), groups, in<T>(other), in<A>(map), in<A>(plus),
                     out<A>(to));
  });
}

void peak_dot(Tensor x, Tensor at, Tensor weight, Tensor to) {
  dispatch(x, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using A = Acc<T>;
    dot_peaks<T>(in<T>(x), shape_of(x), in<int32_t>(at), in<A>(weight), out<A>(to));
  });
}

}  // namespace foveate

STABLE_TORCH_LIBRARY_FRAGMENT(foveate_cpu, m) {
  m.def(
      "spatial_pool(Tensor x, Tensor(a!) mean, Tensor(b!)? peak, Tensor(c!)? at, "
      "Tensor(d!)? spread) -> ()");
  m.def(
      "channel_pool(Tensor x, Tensor? gate, Tensor(a!) peak, Tensor(b!) mean, Tensor(c!) at) -> "
      "()");
  m.def(
      "channel_dot(Tensor x, Tensor? other, Tensor? weight, int groups, Tensor(a!) to) -> ()");
  m.def(
      "spatial_dot(Tensor x, Tensor? other, Tensor? map, Tensor? plus, int groups, Tensor(a!) to) "
      "-> ()");
  m.def("peak_dot(Tensor x, Tensor at, Tensor weight, Tensor(a!) to) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(foveate_cpu, CPU, m) {
  m.impl("spatial_pool", TORCH_BOX(&foveate::spatial_pool));
  m.impl("channel_pool", TORCH_BOX(&foveate::channel_pool));
  m.impl("channel_dot", TORCH_BOX(&foveate::channel_dot));
  m.impl("spatial_dot", TORCH_BOX(&foveate::spatial_dot));
  m.impl("peak_dot", TORCH_BOX(&foveate::peak_dot));
}
