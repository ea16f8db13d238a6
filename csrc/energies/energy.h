// What a native energy is: a functor over C = float or double, made from EnergyParams, with
//
//     template <bool kEnergy, bool kGrad, class F>
//     void evaluate(Rows<F> x, Rows<F> grad, Rows<F> work, LaneSum<F>& energy) const;
//
// for chains in the lanes of F: adds E(x) to `energy` if kEnergy, writes ∇E(x) to `grad` if kGrad. `work` has room for num_components
// numbers. Only what x holds in a lane decides what comes out there, and a NaN or infinity in x never comes out as finite everywhere.
#pragma once

#include "../core/rows.h"
#include "../core/sums.h"
#include "../ops/dynamics.h"
