// Readings of the rows and columns of a map.
#pragma once

#include "common.h"

namespace foveate {

// Tensors of the rows and of the columns of a map: (B, C, H, 1) and (B, C, 1, W), laid out as it is.
struct Strips {
  Tensor rows, columns;
};

// Calls f(first, end) with a few small planes at a time, or one. No result depends on how many.
template <class F>
inline void each_planes(const Shape& s, const F& f) {
  const Index planes = s.B * s.C, many = 4096 / std::max<Index>(1, s.N()) + 1;
  parallel((planes + many - 1) / many, s.N() * many, [&](Index i) {
    f(i * many, std::min(planes, (i + 1) * many));
  });
}

void strip_pool(Tensor x, Tensor rows, Tensor columns, Optional rows_peak, Optional rows_at,
                Optional columns_peak, Optional columns_at);

void strip_dot(Tensor x, Tensor other, Optional row_gate, Optional column_gate, Tensor rows,
               Tensor columns);

}  // namespace foveate
