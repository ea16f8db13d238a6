#pragma once

#include <cstdint>

#include "../core/macros.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

EBM_BEGIN
namespace {

// Rounding and denormals as IEEE has them, whatever the caller's thread is set to.
class DefaultFloatingPoint {
public:
#if defined(__x86_64__)
    DefaultFloatingPoint() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~DefaultFloatingPoint() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#elif defined(__aarch64__)
    DefaultFloatingPoint() {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
        __asm__ volatile("msr fpcr, %0" : : "r"(uint64_t{0}));
    }
    ~DefaultFloatingPoint() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

private:
    uint64_t saved_;
#endif
};

}  // namespace
EBM_END
