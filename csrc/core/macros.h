// Compiler weather: the only file that asks which compiler and which target this is.
//
// EBM_TARGET names the instruction set that the including object is compiled for (baseline, avx2, avx512, cuda). Everything
// that depends on it lives in `inline namespace EBM_TARGET` and is always inlined: objects of several targets are linked
// side by side, and a symbol that two of them shared would be merged into one of the two.
#pragma once

#if defined(__CUDACC__)
#define EBM_HD __host__ __device__ __forceinline__
#define EBM_UNROLL _Pragma("unroll")
#define EBM_UNROLL_LANES _Pragma("unroll 1")
#define EBM_UNROLL_ROWS EBM_UNROLL
#else
#define EBM_HD inline __attribute__((always_inline))
#define EBM_UNROLL _Pragma("GCC unroll 16")
#define EBM_UNROLL_ROWS _Pragma("GCC unroll 32")
#define EBM_UNROLL_LANES EBM_UNROLL  // loops over what are lanes on the CPU: unrolled, a CUDA thread would be megabytes of code
#endif

#define EBM_BEGIN   \
    namespace ebm { \
    inline namespace EBM_TARGET {
#define EBM_END \
    }           \
    }
