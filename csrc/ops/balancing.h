#pragma once

#include <cstdint>

namespace ebm {

// g of proposals ∝ g(exp(E - E')): √t, t / (1 + t), min(1, t), max(1, t).
enum class Balancing : int32_t { sqrt, barker, min, max };

}  // namespace ebm
