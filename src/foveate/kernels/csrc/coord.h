// The layers of coordinate attention, between the reading of the strips and the weighing by gates.
#pragma once

#include "strip.h"

namespace foveate {

struct CoordLayers {
  Tensor w1;
  Optional b1, weight, bias;  // of the first layer and of the normalisation
  bool batch;                 // whether the normalisation takes mean and variance of the batch
  Tensor wh;
  Optional bh;
  Tensor ww;
  Optional bw, strength;
};

// Fills the gates, and what the gradients need.
void coord_gates(const Strips& strips, bool last, const CoordLayers& of, const Optional& mean,
                 const Optional& var, double eps, const Strips& gates, const Tensor& values);

// The gates as they act: themselves, or drawn towards 1 by a strength.
Strips coord_acting(const Strips& gates, const Optional& strength);

// Fills the gradients of the parameters, one after the other, and where they are asked for those of
// the means, a share for each position. `dots` are the gradients of the gates as they act.
void coord_gradients(const Strips& strips, const Strips& gates, const Strips& dots, bool last,
                     const CoordLayers& of, const Tensor& values,
                     const std::optional<Strips>& adds, const Tensor& of_parameters);

}  // namespace foveate
