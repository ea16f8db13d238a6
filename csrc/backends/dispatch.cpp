#include "dispatch.h"

#include <cstdlib>
#include <cstring>

#if defined(EBM_HAVE_BFLOAT16)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace ebm {

#define EBM_CPU_TARGET(name)    \
    namespace name {            \
    extern const OpTable table; \
    }
EBM_CPU_TARGET(baseline)
#if defined(EBM_HAVE_X86_TARGETS)
EBM_CPU_TARGET(avx2)
EBM_CPU_TARGET(avx512)
#endif

namespace {

struct Target {
    const OpTable* table;
    bool (*is_supported)();
};

// Lowest first.
const Target targets[] = {
    {&baseline::table, [] { return true; }},
#if defined(EBM_HAVE_X86_TARGETS)
    {&avx2::table, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma"); }},
    {&avx512::table,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl");
     }},
#endif
};

int count_supported() {
    int n = 0;
    while (n < static_cast<int>(sizeof targets / sizeof targets[0]) && targets[n].is_supported()) ++n;
    return n;
}

#if defined(EBM_HAVE_BFLOAT16)
Bfloat16Products widest_bfloat16_products() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kTiles = 1u << 24, kTilesOfBfloat16 = 1u << 22, kPairs = 1u << 5;
    const bool has_tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) && (d & kTilesOfBfloat16);
#if defined(__linux__)
    constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    if (has_tiles && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0) return Bfloat16Products::amx;
#endif
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kPairs)) return Bfloat16Products::avx512_bf16;
    return Bfloat16Products::emulated;
}
#endif

const OpTable* chosen = targets[count_supported() - 1].table;
const OpTable* cuda = nullptr;

}  // namespace

const OpTable& cpu_table() { return *chosen; }
const char* cpu_target() { return chosen->target; }
int num_cpu_targets() { return count_supported(); }
const char* cpu_target_name(int index) { return targets[index].table->target; }

Status set_cpu_target(const char* name) {
    for (int i = 0; i < count_supported(); ++i) {
        if (std::strcmp(targets[i].table->target, name) == 0) {
            chosen = targets[i].table;
            return nullptr;
        }
    }
    return "not an instruction set of this build and machine";
}

Bfloat16Products bfloat16_products() {
#if defined(EBM_HAVE_BFLOAT16)
    static const Bfloat16Products widest = widest_bfloat16_products();
    if (chosen == &avx512::table) return widest;
#endif
    return Bfloat16Products::emulated;
}

const OpTable* cuda_table() { return cuda; }
void set_cuda_table(const OpTable* table) { cuda = table; }

}  // namespace ebm
