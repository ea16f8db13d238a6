// The numbers of chains that run in lanes, element by element: side by side on the CPU, where V is a vector of one element of kLanes
// chains; on CUDA those of one thread lie `stride` apart, so that neighbouring threads read neighbouring memory.
#pragma once

#include "lanes.h"

EBM_BEGIN

template <class V>
struct Rows {
    V* at;
    int64_t stride;

    EBM_HD V& operator[](int64_t e) const { return at[kLanes == 1 ? e * stride : e]; }
    EBM_HD Rows from(int64_t e) const { return {&(*this)[e], stride}; }
};

EBM_END
