// The table that dispatch hands out: one function per line of ops.def, from all families.
#include "../../ops/table.h"
#include "../launch.h"

#define EBM_STRING(x) #x
#define EBM_NAME(x) EBM_STRING(x)

EBM_BEGIN

#define EBM_OP(name, Params) Status name(const Params&);
#include "../../ops/ops.def"
#undef EBM_OP

extern const OpTable table;
const OpTable table = {
    EBM_NAME(EBM_TARGET),
#define EBM_OP(name, Params) name,
#include "../../ops/ops.def"
#undef EBM_OP
};

#if defined(__CUDACC__)
Status problem() {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    return count == 0 ? "no CUDA device" : nullptr;
}
#endif

EBM_END
