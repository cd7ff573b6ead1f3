// Vectors of the widest kind, loaded from and stored to any element type without alignment.
#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace foveate {

using Index = int64_t;

// Element types as they lie in memory. Arithmetic is done in Acc<T>.
struct BFloat16 {
  uint16_t bits;
};
using Half = _Float16;

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class A>
using Vec __attribute__((vector_size(64))) = A;

// What comparing two vectors gives, and what counts positions beside them.
template <class A>
using Lane = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;

template <class A>
constexpr Index kLanes = 64 / sizeof(A);

template <class A>
inline Vec<A> splat(A value) {
  return value - Vec<A>{};  // not `+`: minus zero must stay minus zero
}

inline Vec<float> widen(const float* p) {
  Vec<float> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Vec<double> widen(const double* p) {
  Vec<double> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Vec<float> widen(const BFloat16* p) {
  uint16_t __attribute__((vector_size(32))) bits;
  std::memcpy(&bits, p, sizeof bits);
  auto wide = __builtin_convertvector(bits, Vec<uint32_t>) << 16;
  Vec<float> v;
  std::memcpy(&v, &wide, sizeof v);
  return v;
}

inline Vec<float> widen(const Half* p) {
  Half __attribute__((vector_size(32))) half;
  std::memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, Vec<float>);
}

inline void narrow(float* p, Vec<float> v) { std::memcpy(p, &v, sizeof v); }

inline void narrow(double* p, Vec<double> v) { std::memcpy(p, &v, sizeof v); }

inline void narrow(BFloat16* p, Vec<float> v) {
  Vec<uint32_t> wide;
  std::memcpy(&wide, &v, sizeof wide);
  // To nearest, ties to even; a NaN must not be rounded into an infinity.
  Vec<uint32_t> rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
  rounded = v == v ? rounded : splat<uint32_t>(0x7fc0);
  auto bits = __builtin_convertvector(rounded, uint16_t __attribute__((vector_size(32))));
  std::memcpy(p, &bits, sizeof bits);
}

inline void narrow(Half* p, Vec<float> v) {
  auto half = __builtin_convertvector(v, Half __attribute__((vector_size(32))));
  std::memcpy(p, &half, sizeof half);
}

// Lanes of one vector of a row: those before `skip` belong to the vector before it, and only
// `count` of them exist. A row that is no multiple of the width ends in a vector that overlaps.
template <class A>
struct Slice {
  Index at, skip = 0, count = kLanes<A>;
  bool whole() const { return count == kLanes<A>; }
};

template <class A>
struct Whole : Slice<A> {};

// Calls f with each slice of [first, n); the type of the last tells that it is partial.
template <class A, class F>
inline void each_slice(Index n, const F& f, Index first = 0) {
  constexpr Index lanes = kLanes<A>;
  Index j = first;
  for (; j + lanes <= n; j += lanes) f(Whole<A>{{j}});
  if (j == n) return;
  if (j) f(Slice<A>{n - lanes, j - (n - lanes), lanes});
  else f(Slice<A>{0, 0, n});
}

// The same as f(slice, turn). Accumulators take turns, so that no addition waits for the one
// before: `turn` is a constant below kTurns, and 0 in rows too short for it to matter.
constexpr Index kTurns = 4;
template <Index turn>
using Turn = std::integral_constant<Index, turn>;

template <class A, class F>
inline void each_turn(Index n, const F& f) {
  constexpr Index lanes = kLanes<A>;
  Index j = 0;
  if (n >= 2 * kTurns * lanes)
    for (; j + kTurns * lanes <= n; j += kTurns * lanes) {
      f(Whole<A>{{j}}, Turn<0>{});
      f(Whole<A>{{j + lanes}}, Turn<1>{});
      f(Whole<A>{{j + 2 * lanes}}, Turn<2>{});
      f(Whole<A>{{j + 3 * lanes}}, Turn<3>{});
    }
  each_slice<A>(n, [&](const auto& s) { f(s, Turn<0>{}); }, j);
}

template <class A>
inline Vec<Lane<A>> iota() {
  Vec<Lane<A>> v = {};
  for (Index i = 0; i < kLanes<A>; ++i) v[i] = i;
  return v;
}

template <class T>
inline Vec<Acc<T>> load(const T* p, const Whole<Acc<T>>& s) {
  return widen(p + s.at);
}

// Copies fewer values than a vector has, in pieces of fixed size, which compile to single moves.
template <class T>
inline void copy_few(T* to, const T* from, Index n) {
#pragma GCC unroll 4
  for (Index size = kLanes<Acc<T>> / 2; size; size /= 2)
    if (n & size) {
      std::memcpy(to, from, size * sizeof(T));
      to += size;
      from += size;
    }
}

#if defined(__AVX512BW__) && defined(__AVX512VL__)
// A few values by one move, in which the others take no part.
template <class T>
inline Vec<Acc<T>> load_few(const T* p, Index count) {
  const auto lanes = (1u << count) - 1;
  if constexpr (sizeof(T) == 8) {
    return std::bit_cast<Vec<double>>(_mm512_maskz_loadu_epi64(lanes, p));
  } else if constexpr (sizeof(T) == 4) {
    return std::bit_cast<Vec<float>>(_mm512_maskz_loadu_epi32(lanes, p));
  } else {
    T part[kLanes<float>];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(part), _mm256_maskz_loadu_epi16(lanes, p));
    return widen(part);
  }
}

template <class T>
inline void store_few(T* p, Vec<Acc<T>> v, Index count) {
  const auto lanes = (1u << count) - 1;
  if constexpr (sizeof(T) == 8) {
    _mm512_mask_storeu_epi64(p, lanes, std::bit_cast<__m512i>(v));
  } else if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_epi32(p, lanes, std::bit_cast<__m512i>(v));
  } else {
    T part[kLanes<float>];
    narrow(part, v);
    const auto bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part));
    _mm256_mask_storeu_epi16(p, lanes, bits);
  }
}
#else
template <class T>
inline Vec<Acc<T>> load_few(const T* p, Index count) {
  T part[kLanes<Acc<T>>] = {};
  copy_few(part, p, count);
  return widen(part);
}

template <class T>
inline void store_few(T* p, Vec<Acc<T>> v, Index count) {
  T part[kLanes<Acc<T>>];
  narrow(part, v);
  copy_few(p, part, count);
}
#endif

// The lanes that exist, skipped ones included; zeros in the others.
template <class T>
inline Vec<Acc<T>> load(const T* p, const Slice<Acc<T>>& s) {
  return s.whole() ? widen(p + s.at) : load_few(p + s.at, s.count);
}

template <class A>
inline Vec<A> masked(Vec<A> v, const Whole<A>&, A) {
  return v;
}

// `fill` in the lanes that are skipped or do not exist.
template <class A>
inline Vec<A> masked(Vec<A> v, const Slice<A>& s, A fill) {
  const auto lane = iota<A>();
  return (lane >= Lane<A>(s.skip)) & (lane < Lane<A>(s.count)) ? v : splat(fill);
}

template <class T>
inline void store(T* p, Vec<Acc<T>> v, const Slice<Acc<T>>& s) {
  if (s.whole()) narrow(p + s.at, v);
  else store_few(p + s.at, v, s.count);
}

// The same past the caches, for what is too large to be found there again: a line that is written
// whole need not be read first. `finish_past` must follow in the same thread.
template <class T>
inline void store_past(T* p, Vec<Acc<T>> v, const Whole<Acc<T>>& s) {
#ifdef __AVX512F__
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p + s.at), std::bit_cast<__m512i>(v));
  } else {
    T part[kLanes<Acc<T>>];
    narrow(part, v);
    __m256i half;
    std::memcpy(&half, part, sizeof half);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p + s.at), half);
  }
#else
  store(p, v, s);
#endif
}

template <class T>
inline void store_past(T* p, Vec<Acc<T>> v, const Slice<Acc<T>>& s) {
  store(p, v, s);
}

inline void finish_past() {
#ifdef __AVX512F__
  _mm_sfence();
#endif
}

inline Vec<int32_t> load_index(const int32_t* p, const Slice<float>& s) {
  int32_t part[16] = {};
  Vec<int32_t> v;
  if (!s.whole()) copy_few(part, p + s.at, s.count);
  std::memcpy(&v, s.whole() ? p + s.at : part, sizeof v);
  return v;
}

inline Vec<int64_t> load_index(const int32_t* p, const Slice<double>& s) {
  Vec<int64_t> v = {};
  for (Index i = 0; i < s.count; ++i) v[i] = p[s.at + i];
  return v;
}

// The two halves of a vector put together by f, down to one value: a fixed tree.
template <class A, int kBytes = 64, class V, class F>
inline A fold(V v, const F& f) {
  if constexpr (kBytes == sizeof(A)) {
    return v;
  } else if constexpr (kBytes == 2 * sizeof(A)) {
    return f(v[0], v[1]);
  } else {
    using HalfVector __attribute__((vector_size(kBytes / 2))) = A;
    HalfVector low, high;
    std::memcpy(&low, &v, sizeof low);
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
    return fold<A, kBytes / 2>(f(low, high), f);
  }
}

// One value in the wide type.
template <class T>
inline Acc<T> value(const T* p) {
  if constexpr (std::is_same_v<T, BFloat16>) return load(p, Slice<float>{0, 0, 1})[0];
  else return *p;
}

template <class A>
inline A sum(Vec<A> v) {
  return fold<A>(v, [](auto a, auto b) { return a + b; });
}

}  // namespace foveate
