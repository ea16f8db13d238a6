#pragma once

#include <cstdint>

namespace ebm {

// A step of Gibbs sampling: all sites in their own order, one site drawn uniformly, or all sites in another order.
enum class Scan : int32_t { raster, random, checkerboard };

}  // namespace ebm
