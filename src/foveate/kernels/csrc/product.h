// Products of tall matrices, whose rows hold the values of all channels, with narrow ones of layers.
#pragma once

#include <vector>

#include "common.h"
#include "fold.h"
#include "reduce.h"
#include "transpose.h"

namespace foveate {

// Vectors, and rows or outputs, whose sums are held at once.
constexpr Index kVectors = 4, kHeld = 4;
// Rows that are copied side by side: in a map they may lie 4096 bytes apart, where they push each
// other out of the first cache.
constexpr Index kCopied = 128;

template <class A>
constexpr Index kBlock = kVectors * kLanes<A>;

// A block of columns of some rows, side by side, zeros behind the last column.
template <class A, class T>
inline void copy_block(const T* from, Index stride, Index rows, Index columns, A* to) {
  for (Index r = 0; r < rows; ++r)
    for (Index v = 0; v < kVectors; ++v) {
      const Index at = v * kLanes<A>, count = std::min(kLanes<A>, columns - at);
      const Vec<A> row = count > 0 ? load(from + r * stride, Slice<A>{at, 0, count}) : Vec<A>{};
      narrow(to + r * kBlock<A> + at, row);
    }
}

// to (rows, n) = from (rows, columns) times the transpose of weight (n, columns), plus bias (n). A
// piece of some rows and of all weights is read from the second cache.
template <class A, class W>
void dots(const A* from, Index rows, Index columns, const W* weight, const W* bias, Index n,
          A* to) {
  constexpr Index high = kLanes<A> / kHeld, kDeep = 512, kMany = 8 * high;
  const auto tile = [&](Index first, Index end, Index o, Index d) {
    const A* row[high];
    for (Index i = 0; i < high; ++i) row[i] = from + std::min(first + i, end - 1) * columns + d;
    const W* each[kHeld];
    for (Index j = 0; j < kHeld; ++j) each[j] = weight + std::min(o + j, n - 1) * columns + d;
    Vec<A> total[kLanes<A>] = {};
    each_slice<A>(std::min(kDeep, columns - d), [&](const auto& s) {
      Vec<A> values[high];
      for (Index i = 0; i < high; ++i) values[i] = load(row[i], s);
      for (Index j = 0; j < kHeld; ++j) {
        const Vec<A> w = load(each[j], s);
        for (Index i = 0; i < high; ++i) total[i * kHeld + j] += masked<A>(values[i] * w, s, A(0));
      }
    });
    const Vec<A> sums = fold_each<A>(total, Add{});
    for (Index i = 0; i < std::min(high, end - first); ++i)
      for (Index j = 0; j < std::min(kHeld, n - o); ++j) {
        A& at = to[(first + i) * n + o + j];
        at = sums[i * kHeld + j] + (d ? at : bias ? value(bias + o + j) : A(0));
      }
  };
  const Index threads = torch::stable::get_num_threads();
  const Index many = std::min(kMany, (rows / threads / high + 1) * high);
  parallel((rows + many - 1) / many, many * columns * n / 4, [&](Index block) {
    const Index first = block * many, end = std::min(rows, first + many);
    for (Index d = 0; d < columns; d += kDeep)
      for (Index o = 0; o < n; o += kHeld)
        for (Index r = first; r < end; r += high) tile(r, end, o, d);
  });
}

// to (rows, columns) = finish(from (rows, n) times weight (n, columns), plus bias (columns)).
template <class A, class W, class F>
void mixes(const A* from, Index rows, Index n, const W* weight, const W* bias, Index columns,
           const F& finish, A* to) {
  constexpr Index wide = kBlock<A>, lanes = kLanes<A>;
  const Index blocks = (columns + wide - 1) / wide, chunks = (rows + kCopied - 1) / kCopied;
  parallel(blocks * chunks, std::min(rows, kCopied) * n * wide / 4, [&](Index i) {
    const Index c = i % blocks * wide, r0 = i / blocks * kCopied, end = std::min(rows, r0 + kCopied);
    const Index count = std::min(wide, columns - c);
    Lines<A> block((n + 1) * wide);
    A* add = block.data() + n * wide;
    std::fill_n(add, wide, A(0));
    copy_block(weight + c, columns, n, count, block.data());
    if (bias) copy_block(bias + c, columns, 1, count, add);
    for (Index r = r0; r < end; r += kHeld) {
      const A* row[kHeld];
      for (Index k = 0; k < kHeld; ++k) row[k] = from + std::min(r + k, end - 1) * n;
      Vec<A> total[kHeld][kVectors];
      for (Index k = 0; k < kHeld; ++k)
        for (Index v = 0; v < kVectors; ++v) total[k][v] = widen(add + v * lanes);
      for (Index j = 0; j < n; ++j) {
        Vec<A> w[kVectors];
        for (Index v = 0; v < kVectors; ++v) w[v] = widen(block.data() + j * wide + v * lanes);
        for (Index k = 0; k < kHeld; ++k)
          for (Index v = 0; v < kVectors; ++v) total[k][v] += row[k][j] * w[v];
      }
      for (Index k = 0; k < std::min(kHeld, end - r); ++k)
        for (Index v = 0; v * lanes < count; ++v)
          store(to + (r + k) * columns + c, finish(total[k][v]),
                Slice<A>{v * lanes, 0, std::min(lanes, count - v * lanes)});
    }
  });
}

// Writes a block of `high` rows and `wide` columns of a matrix, or adds it to what is there.
template <class A>
inline void put_block(const A* from, Index high, Index wide, bool add, A* to, Index stride) {
  for (Index k = 0; k < high; ++k)
    each_slice<A>(wide, [&](const auto& s) {
      const Vec<A> v = load(from + k * kBlock<A>, s);
      A* at = to + k * stride;
      store(at, add ? load(at, s) + masked<A>(v, s, A(0)) : v, s);
    });
}

// The same with rows and columns of the block swapped, always written.
template <class A>
inline void put_block_turned(const A* from, Index high, Index wide, A* to, Index stride) {
  constexpr Index lanes = kLanes<A>;
  for (Index k = 0; k < high; k += lanes)
    for (Index j = 0; j < wide; j += lanes) {
      Vec<A> v[lanes];
      for (Index l = 0; l < lanes; ++l) v[l] = widen(from + (k + l) * kBlock<A> + j);
      transpose<A>(v);
      for (Index l = 0; l < std::min(lanes, wide - j); ++l)
        store(to + (j + l) * stride + k, v[l], Slice<A>{0, 0, std::min(lanes, high - k)});
    }
}

// The transpose of left (rows, n) times right (rows, columns): each block of its columns is given to
// put(block, first, wide). Sums (columns), where they are asked for, are those of right.
template <class A, class F>
void outer(const A* left, const A* right, Index rows, Index n, Index columns, A* sums,
           const F& put) {
  constexpr Index wide = kBlock<A>, lanes = kLanes<A>;
  parallel((columns + wide - 1) / wide, rows * n * wide / 4, [&](Index i) {
    const Index c = i * wide, count = std::min(wide, columns - c);
    Lines<A> block(std::min(rows, kCopied) * wide), found((n + lanes - 1) / lanes * lanes * wide);
    Vec<A> own[kVectors] = {};
    for (Index r0 = 0; r0 < rows; r0 += kCopied) {
      const Index end = std::min(kCopied, rows - r0);
      copy_block(right + r0 * columns + c, columns, end, count, block.data());
      for (Index k = 0; k < n; k += kHeld) {
        Vec<A> total[kHeld][kVectors] = {};
        Index by[kHeld];
        for (Index j = 0; j < kHeld; ++j) by[j] = std::min(k + j, n - 1);
        for (Index r = 0; r < end; ++r) {
          Vec<A> v[kVectors];
          for (Index u = 0; u < kVectors; ++u) v[u] = widen(block.data() + r * wide + u * lanes);
          const A* row = left + (r0 + r) * n;
          for (Index j = 0; j < kHeld; ++j)
            for (Index u = 0; u < kVectors; ++u) total[j][u] += row[by[j]] * v[u];
        }
        for (Index j = 0; j < kHeld; ++j)
          for (Index u = 0; u < kVectors; ++u) {
            A* at = found.data() + (k + j) * wide + u * lanes;
            narrow(at, r0 ? widen(at) + total[j][u] : total[j][u]);
          }
      }
      for (Index r = 0; sums && r < end; ++r)
        for (Index u = 0; u < kVectors; ++u) own[u] += widen(block.data() + r * wide + u * lanes);
    }
    put(found.data(), c, count);
    for (Index u = 0; sums && u * lanes < count; ++u)
      store(sums + c + u * lanes, own[u], Slice<A>{0, 0, std::min(lanes, count - u * lanes)});
  });
}

// Swaps rows and columns of each of many matrices (rows, columns).
template <class T, class A = Acc<T>>
void swap_sides(const T* from, Index many, Index rows, Index columns, A* to) {
  constexpr Index lanes = kLanes<A>;
  const Index tiles = (rows + lanes - 1) / lanes;
  parallel(many * tiles, 2 * lanes * columns, [&](Index i) {
    const Index m = i / tiles, r = i % tiles * lanes, high = std::min(lanes, rows - r);
    for (Index c = 0; c < columns; c += lanes) {
      const Index wide = std::min(lanes, columns - c);
      Vec<A> v[lanes] = {};
      for (Index k = 0; k < high; ++k)
        v[k] = load(from + (m * rows + r + k) * columns, Slice<A>{c, 0, wide});
      transpose<A>(v);
      for (Index k = 0; k < wide; ++k)
        store(to + (m * columns + c + k) * rows, v[k], Slice<A>{r, 0, high});
    }
  });
}

}  // namespace foveate
