// What all kernels share: arguments, their checks, and work split over PyTorch's threads.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <optional>
#include <stdexcept>

#include "vec.h"

namespace foveate {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

// Sizes of a map. `last` tells channels_last, where channels are adjacent in memory.
struct Shape {
  Index B, C, H, W;
  bool last;
  Index N() const { return H * W; }
};

inline Shape shape_of(const Tensor& x) {
  Shape s{x.size(0), x.size(1), x.size(2), x.size(3), false};
  // With one channel or one position both orders are the same.
  s.last = !x.is_contiguous();
  return s;
}

template <class T>
inline const T* in(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
inline const T* in(const Optional& t) {
  return t ? in<T>(*t) : nullptr;
}

template <class T>
inline T* out(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <class T>
inline T* out(const Optional& t) {
  return t ? out<T>(*t) : nullptr;
}

// p + i, or still null.
template <class T>
inline T* shifted(T* p, Index i) {
  return p ? p + i : nullptr;
}

// Calls f with a null pointer of the element type of x.
template <class F>
inline void dispatch(const Tensor& x, const F& f) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return f(static_cast<float*>(nullptr));
    case ScalarType::Double:
      return f(static_cast<double*>(nullptr));
    case ScalarType::BFloat16:
      return f(static_cast<BFloat16*>(nullptr));
    case ScalarType::Half:
      return f(static_cast<Half*>(nullptr));
    default:
      throw std::runtime_error("foveate kernels take float64, float32, bfloat16 and float16");
  }
}

// Asks for large pages under a large output. A first write to each small page is a fault, and
// all of them together can take longer than the writing.
inline void expect_pages([[maybe_unused]] void* p, [[maybe_unused]] Index bytes) {
#ifdef __linux__
  constexpr uintptr_t kPage = 4096, kLarge = 1 << 21;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(p) + kPage - 1) / kPage * kPage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(p) + bytes;
  if (bytes >= Index(kLarge))
    madvise(reinterpret_cast<void*>(first), (end - first) / kPage * kPage, MADV_HUGEPAGE);
#endif
}

// Calls f(i) for i in [0, n), each about `cost` elements of work, in any order and thread, and
// done() in a thread when all of its own are.
template <class F, class G>
inline void parallel(Index n, Index cost, const F& f, const G& done) {
  constexpr Index kWorthAThread = 1 << 14;
  const Index grain = std::max<Index>(1, kWorthAThread / std::max<Index>(1, cost));
  torch::stable::parallel_for(0, n, grain, [&](int64_t begin, int64_t end) {
    for (Index i = begin; i < end; ++i) f(i);
    done();
  });
}

template <class F>
inline void parallel(Index n, Index cost, const F& f) {
  parallel(n, cost, f, [] {});
}

// Prepares for a map to be written, in runs of some elements. Whether that is better done past the
// caches: if it is too large to be found there again, but not so large that the system has just
// cleared its memory, through the caches; and if its runs begin where lines of memory do. `PAST` of
// ops/ledger.py has the same bounds.
template <class T>
inline bool expect_output(T* y, const Shape& s, Index run) {
  constexpr Index kLine = 64, kFar = 8 << 20, kFresh = 32 << 20;
  const Index bytes = s.B * s.C * s.N() * sizeof(T), row = run * sizeof(T);
  expect_pages(y, bytes);
  const bool aligned = reinterpret_cast<uintptr_t>(y) % kLine == 0 && row % kLine == 0;
  return aligned && bytes >= kFar && bytes < kFresh;
}

template <class T>
inline bool expect_output(T* y, const Shape& s) {
  return expect_output(y, s, s.last ? s.C : s.N());
}

// Calls run(write) with how a map is written, past the caches or not: write(place, vector, slice).
template <class F>
inline void writing(bool past, const F& run) {
  if (past) run([](auto* p, const auto& v, const auto& i) { store_past(p, v, i); });
  else run([](auto* p, const auto& v, const auto& i) { store(p, v, i); });
}

// Channels to reduce at once in a channels_last map: as many as leave work for all threads. The
// result of a channel does not depend on it.
inline Index tile_width(Index batch, Index channels, Index most) {
  const Index tasks = 4 * torch::stable::get_num_threads();
  const Index wanted = channels * batch / tasks / 16 * 16;
  return std::min({channels, most, std::max<Index>(32, wanted)});
}

}  // namespace foveate
